//! The old `scp` protocol, both ends: `scp -f` sends files of the container, `scp -t` receives them. Built in, since
//! few containers carry an scp. A command that is neither is left to the shell.
//!
//! Every message is one line or one byte; after each the other side answers 0 (go on), 1 (a complaint, go on) or 2
//! (a complaint, stop). Blocking by nature: it runs in a thread of its own.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, BufRead, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{glob, program::home};
use crate::words;

const LINE_BYTES_MAX: u64 = 8 * 1024;
const DEPTH_MAX: usize = 128;
const PIECE_BYTES: usize = 64 * 1024;

/// What one `scp` command is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    direction: Direction,
    recursive: bool,
    preserve: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Direction {
    Send { sources: Vec<String> },
    Receive { target: String, must_be_directory: bool },
}

/// Reads `scp -t …` and `scp -f …`; `None` for every other command.
pub fn parse(command: &str) -> Option<Copy> {
    let mut words = words::split(command)?.words.into_iter().peekable();
    if words.next()? != "scp" {
        return None;
    }
    let (mut send, mut receive, mut must_be_directory) = (false, false, false);
    let (mut recursive, mut preserve) = (false, false);
    while let Some(flags) = words.next_if(|word| word.starts_with('-') && word.len() > 1) {
        if flags == "--" {
            break;
        }
        for flag in flags.chars().skip(1) {
            match flag {
                'f' => send = true,
                't' => receive = true,
                'd' => must_be_directory = true,
                'r' => recursive = true,
                'p' => preserve = true,
                'v' | 'q' => {}
                _ => return None,
            }
        }
    }
    let mut paths: Vec<String> = words.collect();
    let direction = match (send, receive, paths.len()) {
        (true, false, 1..) => Direction::Send { sources: paths },
        (false, true, 1) => Direction::Receive { target: paths.remove(0), must_be_directory },
        _ => return None,
    };
    Some(Copy { direction, recursive, preserve })
}

impl Copy {
    /// Copies; gives the exit status. An error is a broken connection or protocol.
    pub fn run(&self, from: impl BufRead, to: impl Write) -> io::Result<u32> {
        let mut wire = Wire { from, to, failed: false };
        match &self.direction {
            Direction::Send { sources } => self.send_all(sources, &mut wire)?,
            Direction::Receive { target, must_be_directory } => {
                self.receive_all(target, *must_be_directory, &mut wire)?;
            }
        }
        Ok(wire.failed.into())
    }

    fn send_all<R: BufRead, W: Write>(&self, sources: &[String], wire: &mut Wire<R, W>) -> io::Result<()> {
        wire.answer()?;
        for path in sources.iter().flat_map(|source| glob::expand(source, &home())) {
            self.send(&path, 0, wire)?;
        }
        Ok(())
    }

    /// Sends a file or directory; what cannot be read is complained of and left out.
    fn send<R: BufRead, W: Write>(&self, path: &Path, depth: usize, wire: &mut Wire<R, W>) -> io::Result<()> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return wire.complain(path, &error),
        };
        if metadata.is_dir() {
            if !self.recursive {
                return wire.complain(path, &"not a regular file");
            }
            return self.send_directory(path, &metadata, depth, wire);
        }
        if !metadata.is_file() {
            return wire.complain(path, &"not a regular file");
        }
        match File::open(path) {
            Ok(file) => self.send_file(path, file, &metadata, wire),
            Err(error) => wire.complain(path, &error),
        }
    }

    fn send_file<R: BufRead, W: Write>(
        &self,
        path: &Path,
        file: File,
        metadata: &Metadata,
        wire: &mut Wire<R, W>,
    ) -> io::Result<()> {
        self.send_times(metadata, wire)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if !wire.ask(&format!("C{mode:04o} {} {}\n", metadata.len(), file_name(path)))? {
            return Ok(());
        }
        let mut left = metadata.len();
        let mut piece = vec![0; PIECE_BYTES];
        let mut trouble = None;
        let mut content = file.take(left);
        while left > 0 {
            let length = match content.read(&mut piece) {
                Ok(0) => {
                    trouble = Some(io::Error::other("file is shorter than it was"));
                    break;
                }
                Ok(length) => length,
                Err(error) => {
                    trouble = Some(error);
                    break;
                }
            };
            wire.to.write_all(&piece[..length])?;
            left -= length as u64;
        }
        match trouble {
            None => wire.go_on()?,
            Some(error) => {
                // The size is promised: the rest is filled up before the complaint.
                io::copy(&mut io::repeat(0).take(left), &mut wire.to)?;
                wire.complain(path, &error)?;
            }
        }
        wire.answer().map(drop)
    }

    fn send_directory<R: BufRead, W: Write>(
        &self,
        path: &Path,
        metadata: &Metadata,
        depth: usize,
        wire: &mut Wire<R, W>,
    ) -> io::Result<()> {
        if depth >= DEPTH_MAX {
            return wire.complain(path, &"directories are nested too deeply");
        }
        let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return wire.complain(path, &error),
        };
        self.send_times(metadata, wire)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if !wire.ask(&format!("D{mode:04o} 0 {}\n", file_name(path)))? {
            return Ok(());
        }
        for entry in entries {
            self.send(&entry.path(), depth + 1, wire)?;
        }
        wire.ask("E\n").map(drop)
    }

    fn send_times<R: BufRead, W: Write>(&self, metadata: &Metadata, wire: &mut Wire<R, W>) -> io::Result<()> {
        if !self.preserve {
            return Ok(());
        }
        let times = format!("T{} 0 {} 0\n", metadata.mtime().max(0), metadata.atime().max(0));
        wire.ask(&times).map(drop)
    }

    fn receive_all<R: BufRead, W: Write>(
        &self,
        target: &str,
        must_be_directory: bool,
        wire: &mut Wire<R, W>,
    ) -> io::Result<()> {
        let target = glob::expand(target, &home()).swap_remove(0);
        if must_be_directory && !target.is_dir() {
            return wire.complain(&target, &"Not a directory");
        }
        wire.go_on()?;
        self.receive(&target, 0, wire)
    }

    /// Receives entries into `target` (or as it, when it is no directory) until the end or the directory's end.
    fn receive<R: BufRead, W: Write>(
        &self,
        target: &Path,
        depth: usize,
        wire: &mut Wire<R, W>,
    ) -> io::Result<()> {
        let mut times = None;
        while let Some(line) = wire.line()? {
            match parse_line(&line)? {
                Line::Complaint => wire.failed = true,
                Line::Stop => return Err(io::Error::other("the client gave up")),
                Line::Times(given) => {
                    times = Some(given);
                    wire.go_on()?;
                }
                Line::End if depth > 0 => {
                    wire.go_on()?;
                    return Ok(());
                }
                Line::End => return Err(unexpected(&line)),
                Line::File { mode, size, name } => {
                    let path = self.place(target, name);
                    self.receive_file(&path, mode, size, times.take(), wire)?;
                }
                Line::Directory { mode, name } => {
                    if depth >= DEPTH_MAX {
                        return Err(io::Error::other("directories are nested too deeply"));
                    }
                    let path = self.place(target, name);
                    self.receive_directory(&path, mode, times.take(), depth, wire)?;
                }
            }
        }
        match depth {
            0 => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn place(&self, target: &Path, name: &str) -> PathBuf {
        match target.is_dir() {
            true => target.join(name),
            false => target.to_owned(),
        }
    }

    fn receive_file<R: BufRead, W: Write>(
        &self,
        path: &Path,
        mode: u32,
        size: u64,
        times: Option<Times>,
        wire: &mut Wire<R, W>,
    ) -> io::Result<()> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) => return wire.complain(path, &error),
        };
        wire.go_on()?;
        let written = write_content(&file, size, &mut wire.from)?;
        let kept = written.and_then(|()| self.keep(&file, mode, times));
        wire.answer()?;
        match kept {
            Ok(()) => wire.go_on(),
            Err(error) => wire.complain(path, &error),
        }
    }

    fn keep(&self, file: &File, mode: u32, times: Option<Times>) -> io::Result<()> {
        if self.preserve {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        times.map_or(Ok(()), |times| file.set_times(times.as_file_times()))
    }

    fn receive_directory<R: BufRead, W: Write>(
        &self,
        path: &Path,
        mode: u32,
        times: Option<Times>,
        depth: usize,
        wire: &mut Wire<R, W>,
    ) -> io::Result<()> {
        if !self.recursive {
            return Err(io::Error::other("received a directory without -r"));
        }
        let made = match path.is_dir() {
            true => Ok(()),
            // Written into first, closed to its final mode after.
            false => fs::create_dir(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700))),
        };
        if let Err(error) = made {
            return wire.complain(path, &error);
        }
        wire.go_on()?;
        self.receive(path, depth + 1, wire)?;
        let kept = File::open(path).and_then(|directory| self.keep(&directory, mode, times));
        match kept {
            Ok(()) => Ok(()),
            Err(error) => wire.complain(path, &error),
        }
    }
}

/// Reads all of the content, whether it can be written or not: the outer error is the connection's, the inner the
/// file's.
fn write_content(file: &File, size: u64, from: &mut impl Read) -> io::Result<io::Result<()>> {
    let mut written = Ok(());
    let mut left = size;
    let mut piece = vec![0; PIECE_BYTES];
    while left > 0 {
        let wanted = left.min(PIECE_BYTES as u64) as usize;
        let length = from.read(&mut piece[..wanted])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= length as u64;
        if written.is_ok() {
            written = (&*file).write_all(&piece[..length]);
        }
    }
    Ok(written)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    // A name with a line break would break the protocol.
    name.unwrap_or_else(|| ".".to_owned()).replace('\n', "?")
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    modified: u64,
    accessed: u64,
}

impl Times {
    fn as_file_times(self) -> fs::FileTimes {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::FileTimes::new().set_modified(at(self.modified)).set_accessed(at(self.accessed))
    }
}

#[derive(Debug, PartialEq)]
enum Line<'a> {
    File { mode: u32, size: u64, name: &'a str },
    Directory { mode: u32, name: &'a str },
    End,
    Times(Times),
    Complaint,
    Stop,
}

fn unexpected(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected message: {line:?}"))
}

/// Reads one message. A name that is a path is refused: it could lead anywhere.
fn parse_line(line: &str) -> io::Result<Line<'_>> {
    let wrong = || unexpected(line);
    let mut characters = line.chars();
    let kind = characters.next().ok_or_else(wrong)?;
    let rest = characters.as_str();
    let entry = || -> Option<(u32, u64, &str)> {
        let (mode, rest) = rest.split_once(' ')?;
        let (size, name) = rest.split_once(' ')?;
        let plain = !name.is_empty() && !name.contains('/') && name != ".." && name != ".";
        let mode = u32::from_str_radix(mode, 8).ok()?;
        plain.then_some((mode & 0o7777, size.parse().ok()?, name))
    };
    Ok(match kind {
        'C' => {
            let (mode, size, name) = entry().ok_or_else(wrong)?;
            Line::File { mode, size, name }
        }
        'D' => {
            let (mode, _, name) = entry().ok_or_else(wrong)?;
            Line::Directory { mode, name }
        }
        'E' => Line::End,
        'T' => {
            let mut numbers = rest.split(' ').map(str::parse::<u64>);
            let mut next = || numbers.next().and_then(Result::ok).ok_or_else(wrong);
            let (modified, _, accessed, _) = (next()?, next()?, next()?, next()?);
            Line::Times(Times { modified, accessed })
        }
        '\u{1}' => Line::Complaint,
        '\u{2}' => Line::Stop,
        _ => return Err(wrong()),
    })
}

/// Both directions of the conversation.
struct Wire<R, W> {
    from: R,
    to: W,
    /// Something was complained of, by either side.
    failed: bool,
}

impl<R: BufRead, W: Write> Wire<R, W> {
    fn go_on(&mut self) -> io::Result<()> {
        self.to.write_all(&[0])?;
        self.to.flush()
    }

    fn complain(&mut self, path: &Path, why: &dyn std::fmt::Display) -> io::Result<()> {
        self.failed = true;
        let text = format!("\u{1}scp: {}: {}\n", path.display(), plain(why));
        self.to.write_all(text.as_bytes())?;
        self.to.flush()
    }

    /// Sends a message; `true` when the other side says to go on.
    fn ask(&mut self, message: &str) -> io::Result<bool> {
        self.to.write_all(message.as_bytes())?;
        self.to.flush()?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<bool> {
        let mut answer = [0];
        self.from.read_exact(&mut answer)?;
        match answer[0] {
            0 => Ok(true),
            1 => {
                self.failed = true;
                self.line()?;
                Ok(false)
            }
            2 => Err(io::Error::other(self.line()?.unwrap_or_default())),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {other}"))),
        }
    }

    /// The next line without its end; `None` at the end of everything.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        (&mut self.from).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is cut short or too long"));
        }
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }
}

/// `No such file or directory`, without the number the system's error comes with.
fn plain(why: &dyn std::fmt::Display) -> String {
    let text = why.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_ends_are_built_in() {
        let copy = parse("scp -r -p -t -- '/tmp/a b'").unwrap();
        let target = "/tmp/a b".to_owned();
        assert_eq!(copy.direction, Direction::Receive { target, must_be_directory: false });
        assert!(copy.recursive && copy.preserve);
        let copy = parse(" scp -vqf a b").unwrap();
        assert_eq!(copy.direction, Direction::Send { sources: vec!["a".into(), "b".into()] });
        for command in ["scp a b", "scp -t", "scp -t a b", "scp -ft a", "scp -X -t a", "scpx -t a", "ls"] {
            assert_eq!(parse(command), None, "{command}");
        }
    }

    fn receive(target: &Path, input: &[u8]) -> (io::Result<u32>, Vec<u8>) {
        let copy = parse(&format!("scp -r -p -t {}", target.display())).unwrap();
        let mut output = Vec::new();
        (copy.run(input, &mut output), output)
    }

    #[test]
    fn a_tree_is_received_with_modes_and_times() {
        let directory = tempfile::tempdir().unwrap();
        let input = b"T100 0 200 0\nD0750 0 d\nC0640 2 f\nhi\0E\n";
        let (outcome, output) = receive(directory.path(), input);
        assert_eq!(outcome.unwrap(), 0, "{:?}", String::from_utf8_lossy(&output));
        assert_eq!(output, [0; 6]);
        let metadata = directory.path().join("d").metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.mtime(), metadata.atime()), (0o750, 100, 200));
        assert_eq!(fs::read(directory.path().join("d/f")).unwrap(), b"hi");
    }

    #[test]
    fn hostile_messages_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let messages: [&[u8]; 8] = [
            b"C0644 1 ../x\na\0",
            b"C0644 1 a/b\na\0",
            b"D0755 0 ..\n",
            b"C0644 x f\n",
            b"E\n",
            b"?\n",
            b"C0644 5 f\nab",
            b"C0644 5 f",
        ];
        for message in messages {
            let (outcome, _) = receive(directory.path(), message);
            assert!(outcome.is_err(), "{:?}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn what_is_missing_is_complained_of_and_the_rest_sent() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "hi").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let copy = parse(&format!("scp -f {0}/none {0}/f", directory.path().display())).unwrap();
        let mut output = Vec::new();
        assert_eq!(copy.run(&[0u8, 0, 0][..], &mut output).unwrap(), 1);
        let expected = format!(
            "\u{1}scp: {}/none: No such file or directory\nC0600 2 f\nhi\0",
            directory.path().display()
        );
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }
}
