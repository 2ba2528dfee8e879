//! Checksums of downloads: md5, sha1, sha256, sha512, in hex, in quotes or not.

use sha2::Digest;

use super::FetchError;

pub(crate) enum Hasher {
    None,
    Md5(md5::Context),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

/// A checksum that a download is held against.
pub(crate) struct Checksum {
    expected: String,
    hasher: Hasher,
}

impl Checksum {
    /// Without algorithm and value nothing is checked.
    pub fn new(algorithm: &str, value: &str) -> Result<Self, FetchError> {
        let hasher = match algorithm {
            "" if value.is_empty() => Hasher::None,
            "md5" => Hasher::Md5(md5::Context::new()),
            "sha1" => Hasher::Sha1(sha1::Sha1::new()),
            "sha256" => Hasher::Sha256(sha2::Sha256::new()),
            "sha512" => Hasher::Sha512(Box::default()),
            other => {
                return Err(FetchError::Checksum {
                    problem: "algorithm invalid",
                    expected: "[md5, sha1, sha256, sha512]".into(),
                    received: other.into(),
                });
            }
        };
        let expected = value.trim_matches('"').to_ascii_lowercase();
        let length = hasher.hex_length();
        if expected.len() != length || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FetchError::Checksum {
                problem: "checksum missing or invalid",
                expected: "a valid checksum".into(),
                received: value.into(),
            });
        }
        Ok(Checksum { expected, hasher })
    }

    pub fn update(&mut self, data: &[u8]) {
        match &mut self.hasher {
            Hasher::None => {}
            Hasher::Md5(hasher) => hasher.consume(data),
            Hasher::Sha1(hasher) => hasher.update(data),
            Hasher::Sha256(hasher) => hasher.update(data),
            Hasher::Sha512(hasher) => hasher.update(data),
        }
    }

    pub fn verify(self) -> Result<(), FetchError> {
        let received = match self.hasher {
            Hasher::None => return Ok(()),
            Hasher::Md5(hasher) => hex(&hasher.finalize().0),
            Hasher::Sha1(hasher) => hex(&hasher.finalize()),
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::Sha512(hasher) => hex(&hasher.finalize()),
        };
        if received == self.expected {
            return Ok(());
        }
        Err(FetchError::Checksum { problem: "checksum mismatch", expected: self.expected, received })
    }
}

impl Hasher {
    fn hex_length(&self) -> usize {
        match self {
            Hasher::None => 0,
            Hasher::Md5(_) => 32,
            Hasher::Sha1(_) => 40,
            Hasher::Sha256(_) => 64,
            Hasher::Sha512(_) => 128,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(algorithm: &str, value: &str) -> Result<(), String> {
        let mut checksum = Checksum::new(algorithm, value).map_err(|error| error.to_string())?;
        checksum.update(b"hel");
        checksum.update(b"lo");
        checksum.verify().map_err(|error| error.to_string())
    }

    #[test]
    fn every_algorithm_knows_its_own() {
        assert_eq!(verdict("", ""), Ok(()));
        assert_eq!(verdict("md5", "5d41402abc4b2a76b9719d911017c592"), Ok(()));
        assert_eq!(verdict("md5", "\"5D41402ABC4B2A76B9719D911017C592\""), Ok(()));
        assert_eq!(verdict("sha1", "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d"), Ok(()));
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(verdict("sha256", sha256), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_told_apart() {
        let mismatch = verdict("md5", "00000000000000000000000000000000").unwrap_err();
        assert!(mismatch.starts_with("Checksum failed: 'checksum mismatch'"), "{mismatch}");
        let short = verdict("sha1", "abc").unwrap_err();
        assert_eq!(
            short,
            "Checksum failed: 'checksum missing or invalid', expected 'a valid checksum', got 'abc'"
        );
        let unknown = verdict("crc32", "abc").unwrap_err();
        assert!(unknown.starts_with("Checksum failed: 'algorithm invalid'"), "{unknown}");
        assert!(verdict("", "abc").is_err());
    }
}
