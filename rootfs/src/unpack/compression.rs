//! Which compression a layer has, told by its first bytes (media types are often wrong), and its decoder.

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A frame that only carries metadata, with which chunked zstd layers may begin.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
const MAGIC_BYTES: usize = 4;
const BUFFER_BYTES: usize = 128 * 1024;
/// A frame that wants a larger window (128 MiB) to be decoded is refused: a bound on memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(start: &[u8]) -> Compression {
        if start.starts_with(GZIP) {
            Compression::Gzip
        } else if start.starts_with(ZSTD)
            || (start.len() == MAGIC_BYTES && start[0] & 0xf0 == 0x50 && &start[1..] == ZSTD_SKIPPABLE)
        {
            Compression::Zstd
        } else {
            Compression::None
        }
    }
}

/// The uncompressed bytes of `source`.
pub fn decoder<'a, R: Read + 'a>(mut source: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = [0u8; MAGIC_BYTES];
    let mut length = 0;
    while length < start.len() {
        match source.read(&mut start[length..])? {
            0 => break,
            read => length += read,
        }
    }
    let compression = Compression::of(&start[..length]);
    let whole = Cursor::new(start).take(length as u64).chain(source);
    let whole = BufReader::with_capacity(BUFFER_BYTES, whole);
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn round(compressed: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        decoder(&compressed[..]).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn each_compression_is_known_by_its_first_bytes() {
        let text = b"some text, long enough to be compressed, compressed, compressed".to_vec();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        assert_eq!(round(text.clone()), text);
        assert_eq!(round(gzip.clone()), text);
        assert_eq!(round(zstd.clone()), text);
        // Layers may be written as several members or frames.
        assert_eq!(round([gzip.clone(), gzip].concat()), text.repeat(2));
        assert_eq!(round([zstd.clone(), zstd].concat()), text.repeat(2));
        assert_eq!(round(Vec::new()), b"");
        assert_eq!(round(b"ab".to_vec()), b"ab");
    }
}
