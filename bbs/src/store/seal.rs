//! Records at rest: sealed with AES-256-GCM, so that who reads the tables reads names and states, and no command, variable,
//! route or address.
//!
//! A sealed record is `0 1 LABEL-LENGTH LABEL NONCE CIPHERTEXT`, for a protobuf never begins with a zero. It is bound to
//! its row: moved to another one it does not open. What is sealed by a key that is not active any more, or not at all, is
//! told of when it is read, and written anew.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::{Contents, Error, Record, Rows, Write};

const MAGIC: [u8; 2] = [0, 1];
pub const LABEL_BYTES_MAX: usize = 127;
/// The part of a nonce that is drawn once for a process; the rest counts. All of them drawn would repeat too soon.
const NONCE_PREFIX_BYTES: usize = 6;

/// Why keys cannot be used. The texts are those that operators know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    #[error("Must have at least one encryption key set")]
    None,
    #[error("Must select an active encryption key")]
    NoActive,
    #[error("The selected active key must be listed on the encryption keys flag")]
    UnknownActive,
    #[error("A key label is required")]
    NoLabel,
    #[error("Key label is longer than 127 bytes")]
    LongLabel,
    #[error("the machine has no random numbers")]
    NoRandomness,
}

/// The keys by their labels, one of which seals.
pub struct Keys {
    active: String,
    keys: HashMap<String, LessSafeKey>,
    prefix: [u8; NONCE_PREFIX_BYTES],
    sealed: AtomicU64,
}

impl Keys {
    /// A key is the SHA-256 of its passphrase.
    pub fn new(
        active: &str,
        passphrases: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Keys, BadKeys> {
        let mut keys = HashMap::new();
        for (label, passphrase) in passphrases {
            match label.len() {
                0 => return Err(BadKeys::NoLabel),
                length if length > LABEL_BYTES_MAX => return Err(BadKeys::LongLabel),
                _ => keys.insert(label, key(&passphrase)?),
            };
        }
        match active {
            _ if keys.is_empty() => return Err(BadKeys::None),
            "" => return Err(BadKeys::NoActive),
            active if !keys.contains_key(active) => return Err(BadKeys::UnknownActive),
            _ => {}
        }
        let mut prefix = [0; NONCE_PREFIX_BYTES];
        SystemRandom::new().fill(&mut prefix).map_err(|_| BadKeys::NoRandomness)?;
        Ok(Keys { active: active.into(), keys, prefix, sealed: AtomicU64::new(0) })
    }

    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        let (prefix, counter) = nonce.split_at_mut(NONCE_PREFIX_BYTES);
        prefix.copy_from_slice(&self.prefix);
        // 2^48 records are more than a process lives to see.
        counter.copy_from_slice(&self.sealed.fetch_add(1, Ordering::Relaxed).to_be_bytes()[2..]);
        nonce
    }

    fn seal(&self, row: &str, record: &mut Vec<u8>) -> Result<(), ring::error::Unspecified> {
        let (label, nonce) = (&self.active, self.nonce());
        let key = self.keys.get(label).ok_or(ring::error::Unspecified)?;
        let mut sealed = Vec::with_capacity(
            MAGIC.len() + 1 + label.len() + NONCE_LEN + record.len() + AES_256_GCM.tag_len(),
        );
        sealed.extend(MAGIC);
        // At most LABEL_BYTES_MAX.
        sealed.push(label.len() as u8);
        sealed.extend(label.as_bytes());
        sealed.extend(nonce);
        let opened = sealed.len();
        sealed.append(record);
        let (nonce, row) = (Nonce::assume_unique_for_key(nonce), Aad::from(row.as_bytes()));
        let tag = key.seal_in_place_separate_tag(nonce, row, &mut sealed[opened..])?;
        sealed.extend(tag.as_ref());
        *record = sealed;
        Ok(())
    }
}

/// Labels, and no key.
impl Debug for Keys {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("active", &self.active).finish_non_exhaustive()
    }
}

fn key(passphrase: &str) -> Result<LessSafeKey, BadKeys> {
    let hash = digest(&SHA256, passphrase.as_bytes());
    // A SHA-256 is as long as an AES-256 key.
    UnboundKey::new(&AES_256_GCM, hash.as_ref()).map(LessSafeKey::new).map_err(|_| BadKeys::None)
}

/// Label, nonce, and what was sealed.
fn parts(record: &[u8]) -> Option<(String, [u8; NONCE_LEN], &[u8])> {
    let (length, rest) = record.strip_prefix(&MAGIC)?.split_first()?;
    let (label, rest) = rest.split_at_checked(usize::from(*length))?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
    Some((String::from_utf8_lossy(label).into_owned(), *nonce, sealed))
}

/// Rows whose records are sealed on their way in and opened on their way out; without keys they stay as they are.
pub struct Sealed {
    rows: Box<dyn Rows>,
    keys: Option<Keys>,
}

impl Sealed {
    pub fn new(rows: Box<dyn Rows>, keys: Option<Keys>) -> Sealed {
        Sealed { rows, keys }
    }

    /// What is not sealed is taken as it is: so it is written by who has no keys.
    fn open(&self, kind: &str, record: &mut Record) -> Result<(), Error> {
        let refused = |label: &str, why: &'static str| Error::Unsealable {
            at: self.rows.at(),
            row: format!("{kind} {}", record.key),
            label: label.into(),
            why,
        };
        if !record.bytes.starts_with(&MAGIC) {
            record.is_outdated = self.keys.is_some();
            return Ok(());
        }
        let Some((label, nonce, sealed)) = parts(&record.bytes) else {
            return Err(refused("?", "it is cut off"));
        };
        let Some(key) = self.keys.as_ref().and_then(|keys| keys.keys.get(&label)) else {
            return Err(refused(&label, "which is not among the known keys"));
        };
        let mut opened = sealed.to_vec();
        let row = format!("{kind} {}", record.key);
        let length = key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(row.as_bytes()), &mut opened)
            .map_err(|_| refused(&label, "and does not open: another passphrase, or not what was written"))?
            .len();
        opened.truncate(length);
        record.bytes = opened;
        record.is_outdated = self.keys.as_ref().is_some_and(|keys| keys.active != label);
        Ok(())
    }

    fn seal(&self, writes: &mut [Write]) -> Result<(), Error> {
        let Some(keys) = &self.keys else { return Ok(()) };
        for write in writes {
            let (row, record) = match write {
                Write::PutDesiredLrp { process_guid, record, .. } => {
                    (format!("DesiredLRP {process_guid}"), record)
                }
                Write::PutActualLrp { key, record, .. } => (format!("ActualLRP {key}"), record),
                Write::PutTask { guid, record, .. } => (format!("Task {guid}"), record),
                _ => continue,
            };
            keys.seal(&row, record).map_err(|_| Error::Unwritable {
                at: self.rows.at(),
                reason: format!("cannot seal {row}"),
            })?;
        }
        Ok(())
    }
}

#[async_trait]
impl Rows for Sealed {
    fn at(&self) -> String {
        self.rows.at()
    }

    async fn load(&mut self) -> Result<Contents, Error> {
        let mut contents = self.rows.load().await?;
        contents.desired_lrps.iter_mut().try_for_each(|record| self.open("DesiredLRP", record))?;
        contents.actual_lrps.iter_mut().try_for_each(|record| self.open("ActualLRP", record))?;
        contents.tasks.iter_mut().try_for_each(|record| self.open("Task", record))?;
        Ok(contents)
    }

    async fn commit(&mut self, mut writes: Vec<Write>) -> Result<(), Error> {
        self.seal(&mut writes)?;
        self.rows.commit(writes).await
    }

    fn may_be_away(&self) -> bool {
        self.rows.may_be_away()
    }

    async fn check(&mut self) -> Result<(), Error> {
        self.rows.check().await
    }

    async fn resume(&mut self) -> Result<(), Error> {
        self.rows.resume().await
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        self.rows.close().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::memory::{Disk, Fate};
    use super::*;

    fn keys(active: &str, labels: &[&str]) -> Result<Keys, BadKeys> {
        Keys::new(active, labels.iter().map(|label| (label.to_string(), format!("phrase of {label}"))))
    }

    fn sealed(disk: &Disk, keys: Option<Keys>) -> Sealed {
        Sealed::new(Box::new(disk.open(Arc::new(|| (Duration::ZERO, Fate::Written)))), keys)
    }

    fn put(guid: &str, record: &[u8]) -> Write {
        let (domain, cell_id) = (String::new(), String::new());
        Write::PutTask { guid: guid.into(), domain, state: "Pending", cell_id, record: record.into() }
    }

    /// `record` for each Task, with a `*` if it has to be sealed anew.
    async fn picture(sealed: &mut Sealed) -> Result<Vec<String>, String> {
        let contents = sealed.load().await.map_err(|error| error.to_string())?;
        let one = |task: &Record| {
            format!("{}{}", String::from_utf8_lossy(&task.bytes), if task.is_outdated { "*" } else { "" })
        };
        Ok(contents.tasks.iter().map(one).collect())
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused_with_the_words_that_operators_know() {
        let long = "l".repeat(128);
        for (active, labels, expected) in [
            ("a", vec![], "Must have at least one encryption key set"),
            ("", vec!["a"], "Must select an active encryption key"),
            ("b", vec!["a"], "The selected active key must be listed on the encryption keys flag"),
            ("a", vec!["a", ""], "A key label is required"),
            ("a", vec!["a", &long], "Key label is longer than 127 bytes"),
        ] {
            assert_eq!(keys(active, &labels).unwrap_err().to_string(), expected);
        }
    }

    #[tokio::test]
    async fn records_are_sealed_and_read_with_the_key_that_sealed_them() {
        let disk = Disk::default();
        sealed(&disk, None).commit(vec![put("1", b"plain")]).await.unwrap();
        let mut first = sealed(&disk, keys("a", &["a"]).ok());
        first.commit(vec![put("2", b"secret")]).await.unwrap();
        assert_eq!(picture(&mut first).await.unwrap(), ["plain*", "secret"]);
        let mut second = sealed(&disk, keys("b", &["a", "b"]).ok());
        second.commit(vec![put("3", b"")]).await.unwrap();
        assert_eq!(picture(&mut second).await.unwrap(), ["plain*", "secret*", ""]);
        let mut raw = sealed(&disk, None).rows;
        let raw = raw.load().await.unwrap().tasks;
        assert!(raw[1].bytes.starts_with(b"\0\x01\x01a"), "{:?}", raw[1]);
        assert!(!raw[1].bytes.windows(6).any(|part| part == b"secret"));
    }

    #[tokio::test]
    async fn a_key_that_is_missing_or_wrong_is_named() {
        let disk = Disk::default();
        sealed(&disk, keys("old", &["old"]).ok()).commit(vec![put("t", b"secret")]).await.unwrap();
        let unknown =
            "Task t in the simulated disk is sealed with the key \"old\", which is not among the known keys";
        assert_eq!(picture(&mut sealed(&disk, None)).await.unwrap_err(), unknown);
        assert_eq!(picture(&mut sealed(&disk, keys("new", &["new"]).ok())).await.unwrap_err(), unknown);
        let other = Keys::new("old", [("old".into(), "another".into())]).ok();
        let refused = picture(&mut sealed(&disk, other)).await.unwrap_err();
        assert!(refused.contains("the key \"old\", and does not open"), "{refused}");
    }

    #[tokio::test]
    async fn a_record_in_the_row_of_another_or_changed_does_not_open() {
        let disk = Disk::default();
        sealed(&disk, keys("a", &["a"]).ok()).commit(vec![put("1", b"one")]).await.unwrap();
        let bytes = sealed(&disk, None).rows.load().await.unwrap().tasks.remove(0).bytes;
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let cut = [&bytes[..3], &bytes[..10], &bytes[..bytes.len() - 1], b"\0\x01", b"\0\x01\xff"];
        let moved = ("2", bytes.clone());
        let changed = cut.into_iter().map(<[u8]>::to_vec).chain([flipped]).map(|bytes| ("1", bytes));
        for (guid, bytes) in changed.chain([moved]) {
            sealed(&disk, None).commit(vec![put(guid, &bytes)]).await.unwrap();
            let refused = picture(&mut sealed(&disk, keys("a", &["a"]).ok())).await;
            assert!(refused.is_err(), "{guid} {bytes:?}: {refused:?}");
            sealed(&disk, None).commit(vec![Write::DropTask { guid: guid.into() }]).await.unwrap();
        }
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let keys = keys("a", &["a"]).unwrap();
        let nonces: std::collections::HashSet<_> = (0..1000).map(|_| keys.nonce()).collect();
        assert_eq!(nonces.len(), 1000);
    }
}
