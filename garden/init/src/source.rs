//! The bytes of an archive as they come out of a pipe: headers and small things through a buffer, the content of large
//! files past it, moved by the kernel from the pipe to the file.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};

use crate::siphon::{BYTES_MAX, Siphon};

/// What the buffer holds.
pub const BUFFER_BYTES: usize = 256 * 1024;
/// Read ahead at first, and after each large file: what follows may be the next one's header and content.
const AHEAD_BYTES_MIN: usize = 4 * 1024;

/// Read through a shared reference: an archive's reader holds one, whoever moves content another.
pub struct Source {
    stream: File,
    state: RefCell<State>,
}

struct State {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    ahead: usize,
    /// Content that has been moved and that the archive's reader is still to pass over: read, it is of no effect.
    moved: u64,
    /// `None` before it is needed.
    siphon: Option<Siphon>,
    moves: bool,
}

impl Source {
    pub fn new(stream: File) -> Source {
        let state = State {
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            ahead: AHEAD_BYTES_MIN,
            moved: 0,
            siphon: None,
            moves: true,
        };
        Source { stream, state: RefCell::new(state) }
    }

    /// Moves some of the next `left` bytes to where `file` stands, and has as many of the next that are read be of no
    /// effect. `None`: they have to be read, now or always. Zero: there are none.
    pub fn move_to(&self, file: &File, left: u64) -> io::Result<Option<u64>> {
        let state = &mut *self.state.borrow_mut();
        if !state.moves || state.start < state.end || state.moved > 0 {
            return Ok(None);
        }
        let siphon = match &mut state.siphon {
            Some(siphon) => siphon,
            none => none.insert(Siphon::new()?),
        };
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(BYTES_MAX);
        let Some(count) = siphon.carry(&self.stream, file, wanted)? else {
            state.moves = false;
            return Ok(None);
        };
        state.moved = count as u64;
        state.ahead = AHEAD_BYTES_MIN;
        Ok(Some(count as u64))
    }
}

impl State {
    fn refill(&mut self, mut stream: &File) -> io::Result<()> {
        (self.start, self.end) = (0, 0);
        self.end = stream.read(&mut self.buffer[..self.ahead])?;
        if self.end == self.ahead {
            self.ahead = (4 * self.ahead).min(BUFFER_BYTES);
        }
        Ok(())
    }
}

impl Read for &Source {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state.borrow_mut();
        if state.moved > 0 {
            let count = bytes.len().min(usize::try_from(state.moved).unwrap_or(usize::MAX));
            state.moved -= count as u64;
            return Ok(count);
        }
        if state.start == state.end {
            if bytes.len() >= BUFFER_BYTES {
                return (&self.stream).read(bytes);
            }
            state.refill(&self.stream)?;
        }
        let count = bytes.len().min(state.end - state.start);
        bytes[..count].copy_from_slice(&state.buffer[state.start..state.start + count]);
        state.start += count;
        Ok(count)
    }
}
