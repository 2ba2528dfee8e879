//! Pseudo-terminals: one is made, sized and set as the client's own, and a program becomes the leader of a session on it.
//!
//! Taking a controlling terminal must happen in the child between fork and exec. Without unsafe code that is done by
//! starting this very program with [`SESSION_LEADER`] first, which takes the terminal and becomes the program asked for.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    pin::Pin,
    process::Command,
    sync::Arc,
    task::{Context, Poll, ready},
};

use russh::Pty;
use rustix::{
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{
        ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
        Winsize, tcgetattr, tcsetattr, tcsetwinsize,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

/// The first argument that makes this program a session leader.
pub const SESSION_LEADER: &str = "--become-session-leader";

/// The terminal a client asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub size: Size,
    pub modes: Vec<(Pty, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub columns: u32,
    pub rows: u32,
    pub width: u32,
    pub height: u32,
}

/// The master side of a terminal.
#[derive(Clone)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
}

/// Opens a terminal as asked for; gives the side for the program too.
pub fn open(request: &Request) -> io::Result<(Terminal, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let mut settings = tcgetattr(&peer)?;
    for (mode, value) in &request.modes {
        set_mode(&mut settings, *mode, *value);
    }
    tcsetattr(&peer, OptionalActions::Now, &settings)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    // Deprecated for descriptors that are closed behind its back; this one is owned and closed with it.
    #[allow(deprecated)]
    let terminal = Terminal { master: Arc::new(AsyncFd::new(master)?) };
    terminal.resize(request.size)?;
    Ok((terminal, peer))
}

impl Terminal {
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: clamp(size.rows),
            ws_col: clamp(size.columns),
            ws_xpixel: clamp(size.width),
            ws_ypixel: clamp(size.height),
        };
        Ok(tcsetwinsize(self.master.as_fd(), size)?)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.master.poll_read_ready(cx))?;
            let space = into.initialize_unfilled();
            match ready.try_io(|master| Ok(rustix::io::read(master.get_ref(), space)?)) {
                Ok(Ok(length)) => {
                    into.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // What the master says once nobody has the terminal open any more: the end.
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.master.poll_write_ready(cx))?;
            match ready.try_io(|master| Ok(rustix::io::write(master.get_ref(), data)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no end of input of its own; it ends when it is closed.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Takes the terminal at standard input and becomes the program; returns only when that fails.
pub fn become_session_leader(mut command: impl Iterator<Item = OsString>) -> io::Error {
    let Some(program) = command.next() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no program to become");
    };
    let led =
        rustix::process::setsid().and_then(|_| rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()));
    match led {
        Ok(()) => Command::new(program).args(command).exec(),
        Err(error) => error.into(),
    }
}

/// Sets one encoded terminal mode (RFC 4254, section 8). Modes this system does not have are left alone.
fn set_mode(settings: &mut Termios, mode: Pty, value: u32) {
    if let Some(code) = special_code(mode) {
        // 255 is "disabled", which is 0 here.
        settings.special_codes[code] = if value >= 255 { 0 } else { value as u8 };
        return;
    }
    let on = value != 0;
    if let Some(flag) = input_mode(mode) {
        settings.input_modes.set(flag, on);
    } else if let Some(flag) = local_mode(mode) {
        settings.local_modes.set(flag, on);
    } else if let Some(flag) = output_mode(mode) {
        settings.output_modes.set(flag, on);
    } else if let Some(flag) = control_mode(mode) {
        match (mode, on) {
            // The two character sizes share bits: each is set in their place, and neither is cleared.
            (Pty::CS7 | Pty::CS8, true) => {
                settings.control_modes.remove(ControlModes::CSIZE);
                settings.control_modes.insert(flag);
            }
            (Pty::CS7 | Pty::CS8, false) => {}
            _ => settings.control_modes.set(flag, on),
        }
    }
}

fn special_code(mode: Pty) -> Option<SpecialCodeIndex> {
    Some(match mode {
        Pty::VINTR => SpecialCodeIndex::VINTR,
        Pty::VQUIT => SpecialCodeIndex::VQUIT,
        Pty::VERASE => SpecialCodeIndex::VERASE,
        Pty::VKILL => SpecialCodeIndex::VKILL,
        Pty::VEOF => SpecialCodeIndex::VEOF,
        Pty::VEOL => SpecialCodeIndex::VEOL,
        Pty::VEOL2 => SpecialCodeIndex::VEOL2,
        Pty::VSTART => SpecialCodeIndex::VSTART,
        Pty::VSTOP => SpecialCodeIndex::VSTOP,
        Pty::VSUSP => SpecialCodeIndex::VSUSP,
        Pty::VREPRINT => SpecialCodeIndex::VREPRINT,
        Pty::VWERASE => SpecialCodeIndex::VWERASE,
        Pty::VLNEXT => SpecialCodeIndex::VLNEXT,
        Pty::VDISCARD => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input_mode(mode: Pty) -> Option<InputModes> {
    Some(match mode {
        Pty::IGNPAR => InputModes::IGNPAR,
        Pty::PARMRK => InputModes::PARMRK,
        Pty::INPCK => InputModes::INPCK,
        Pty::ISTRIP => InputModes::ISTRIP,
        Pty::INLCR => InputModes::INLCR,
        Pty::IGNCR => InputModes::IGNCR,
        Pty::ICRNL => InputModes::ICRNL,
        Pty::IUCLC => InputModes::IUCLC,
        Pty::IXON => InputModes::IXON,
        Pty::IXANY => InputModes::IXANY,
        Pty::IXOFF => InputModes::IXOFF,
        Pty::IMAXBEL => InputModes::IMAXBEL,
        Pty::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local_mode(mode: Pty) -> Option<LocalModes> {
    Some(match mode {
        Pty::ISIG => LocalModes::ISIG,
        Pty::ICANON => LocalModes::ICANON,
        Pty::XCASE => LocalModes::XCASE,
        Pty::ECHO => LocalModes::ECHO,
        Pty::ECHOE => LocalModes::ECHOE,
        Pty::ECHOK => LocalModes::ECHOK,
        Pty::ECHONL => LocalModes::ECHONL,
        Pty::NOFLSH => LocalModes::NOFLSH,
        Pty::TOSTOP => LocalModes::TOSTOP,
        Pty::IEXTEN => LocalModes::IEXTEN,
        Pty::ECHOCTL => LocalModes::ECHOCTL,
        Pty::ECHOKE => LocalModes::ECHOKE,
        Pty::PENDIN => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output_mode(mode: Pty) -> Option<OutputModes> {
    Some(match mode {
        Pty::OPOST => OutputModes::OPOST,
        Pty::OLCUC => OutputModes::OLCUC,
        Pty::ONLCR => OutputModes::ONLCR,
        Pty::OCRNL => OutputModes::OCRNL,
        Pty::ONOCR => OutputModes::ONOCR,
        Pty::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}

fn control_mode(mode: Pty) -> Option<ControlModes> {
    Some(match mode {
        Pty::CS7 => ControlModes::CS7,
        Pty::CS8 => ControlModes::CS8,
        Pty::PARENB => ControlModes::PARENB,
        Pty::PARODD => ControlModes::PARODD,
        _ => return None,
    })
}
