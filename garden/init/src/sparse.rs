//! Sparse files in PAX archives, as GNU tar writes them: what is stored of them is their data, one stretch after the
//! other; where in the file these belong is said in the entry's records (versions 0.0 and 0.1) or before the data (1.0).
//!
//! What an entry says is not believed: stretches are in order, apart, within the file, and as long as what is stored.

use std::io::{self, Read};

use tar::Entry;

const RECORD: &[u8] = b"GNU.sparse.";
/// A map before the data is filled up to a multiple of this.
const BLOCK_BYTES: usize = 512;
/// Stretches of one file; each takes 16 bytes while it is unpacked.
const STRETCHES_MAX: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Of the file; `None`: as the entry has it.
    pub name: Option<Vec<u8>>,
    pub size: u64,
    pub stretches: Vec<Stretch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub offset: u64,
    pub bytes: u64,
}

/// What an entry's records say.
#[derive(Default)]
struct Said {
    major: u64,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offsets and lengths in turns.
    numbers: Vec<u64>,
}

/// `None`: the entry's file is an ordinary one. What comes out of the entry after this is the file's data.
pub fn of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Option<Sparse>> {
    let stored = entry.size();
    let Some(said) = said(entry)? else { return Ok(None) };
    let (numbers, map_bytes) = match said.major {
        0 => (said.numbers, 0),
        1 => map_before_data(entry)?,
        _ => return Err(wrong("it is sparse in a form that is not known")),
    };
    let size = said.size.ok_or_else(|| wrong("it is sparse and has no size"))?;
    let stretches = stretches(&numbers, size, stored.saturating_sub(map_bytes))?;
    Ok(Some(Sparse { name: said.name, size, stretches }))
}

fn said<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Option<Said>> {
    let Some(records) = entry.pax_extensions()? else { return Ok(None) };
    let (mut said, mut any) = (Said::default(), false);
    // Others may hold what is no record for the crate that reads them: those before it count.
    for record in records.map_while(Result::ok) {
        let Some(key) = record.key_bytes().strip_prefix(RECORD) else { continue };
        any = true;
        let value = record.value_bytes();
        match key {
            b"major" => said.major = number(value)?,
            b"name" => said.name = Some(value.to_vec()),
            b"size" | b"realsize" => said.size = Some(number(value)?),
            b"offset" | b"numbytes" => push(&mut said.numbers, value)?,
            b"map" => {
                said.numbers.clear();
                for value in value.split(|byte| *byte == b',').filter(|value| !value.is_empty()) {
                    push(&mut said.numbers, value)?;
                }
            }
            // How many there are is seen, and there has been one minor version only.
            _ => {}
        }
    }
    Ok(any.then_some(said))
}

/// A line for the count of stretches, then two for each. Also how many bytes it took.
fn map_before_data(content: &mut impl Read) -> io::Result<(Vec<u64>, u64)> {
    let (mut numbers, mut block, mut line) = (Vec::new(), [0; BLOCK_BYTES], Vec::new());
    let (mut expected, mut bytes) = (None, 0);
    while expected != Some(numbers.len()) {
        content.read_exact(&mut block).map_err(|_| wrong("its map of holes is cut short"))?;
        bytes += BLOCK_BYTES as u64;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            match expected {
                None => expected = Some(lines(number(&line)?)?),
                Some(expected) if expected == numbers.len() => break,
                Some(_) => push(&mut numbers, &line)?,
            }
            line.clear();
        }
        if line.len() > BLOCK_BYTES {
            return Err(wrong("its map of holes is no map"));
        }
    }
    Ok((numbers, bytes))
}

fn lines(stretches: u64) -> io::Result<usize> {
    match usize::try_from(stretches) {
        Ok(stretches) if stretches <= STRETCHES_MAX => Ok(2 * stretches),
        _ => Err(too_many()),
    }
}

fn push(numbers: &mut Vec<u64>, value: &[u8]) -> io::Result<()> {
    if numbers.len() == 2 * STRETCHES_MAX {
        return Err(too_many());
    }
    numbers.push(number(value)?);
    Ok(())
}

fn number(value: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong("its map of holes has something else for a number"))
}

fn stretches(numbers: &[u64], size: u64, stored: u64) -> io::Result<Vec<Stretch>> {
    let (pairs, left) = numbers.as_chunks::<2>();
    let (mut end, mut total) = (0, 0_u64);
    let mut stretches = Vec::with_capacity(pairs.len());
    for [offset, bytes] in pairs {
        if *offset < end || offset.checked_add(*bytes).is_none_or(|end| end > size) {
            return Err(wrong("its map of holes is not in order or leads out of it"));
        }
        end = offset + bytes;
        total = total.saturating_add(*bytes);
        stretches.push(Stretch { offset: *offset, bytes: *bytes });
    }
    match left.is_empty() && total == stored {
        true => Ok(stretches),
        false => Err(wrong("its map of holes does not fit what is stored of it")),
    }
}

fn too_many() -> io::Error {
    wrong(&format!("it has more than {STRETCHES_MAX} stretches of data"))
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pairs: &[u64], size: u64, stored: u64) -> String {
        match stretches(pairs, size, stored) {
            Ok(stretches) => {
                let one = |stretch: &Stretch| format!("{}+{}", stretch.offset, stretch.bytes);
                stretches.iter().map(one).collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn stretches_lie_in_order_in_the_file_and_are_what_is_stored() {
        let disorder = "its map of holes is not in order or leads out of it";
        let misfit = "its map of holes does not fit what is stored of it";
        for (pairs, size, stored, expected) in [
            (&[][..], 0, 0, ""),
            (&[0, 10, 20, 5, 100, 0], 100, 15, "0+10 20+5 100+0"),
            (&[0, 10, 10, 5], 15, 15, "0+10 10+5"),
            (&[0, 10, 9, 5], 100, 15, disorder),
            (&[20, 5, 0, 10], 100, 15, disorder),
            (&[90, 11], 100, 11, disorder),
            (&[u64::MAX, 2], u64::MAX, 2, disorder),
            (&[0, 10, 20], 100, 10, misfit),
            (&[0, 10], 100, 9, misfit),
            (&[0, 10], 100, 11, misfit),
        ] {
            assert_eq!(shown(pairs, size, stored), expected, "{pairs:?} in {size}");
        }
    }

    fn map(text: &str) -> String {
        let mut content = text.as_bytes().to_vec();
        content.resize(text.len().next_multiple_of(BLOCK_BYTES), 0);
        match map_before_data(&mut content.as_slice()) {
            Ok((numbers, bytes)) => format!("{numbers:?} in {bytes}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_map_before_the_data_is_read_to_its_end_and_not_beyond() {
        let many = format!("200\n{}", "1\n".repeat(400));
        for (text, expected) in [
            ("0\n", "[] in 512".to_owned()),
            ("1\n4096\n512\nnot of it", "[4096, 512] in 512".into()),
            (&many, format!("{:?} in 1024", [1; 400])),
            ("", "its map of holes is cut short".into()),
            ("2\n1\n1\n", "its map of holes is cut short".into()),
            ("x\n", "its map of holes has something else for a number".into()),
            ("1\n-1\n2\n", "its map of holes has something else for a number".into()),
            ("99999999999\n", "it has more than 1048576 stretches of data".into()),
            (&"1".repeat(2000), "its map of holes is no map".into()),
        ] {
            assert_eq!(map(text), expected, "{:.20}", text);
        }
    }
}
