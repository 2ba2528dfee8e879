//! ssh keys: making them, reading them, and the fingerprints route data names them by.

use base64::{Engine, engine::general_purpose::STANDARD};
use russh::keys::{
    PrivateKey, PublicKey, decode_secret_key,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Lengths by which the kinds of fingerprints are told apart in route data.
const MD5_CHARACTERS: usize = 47;
const SHA1_CHARACTERS: usize = 59;

/// A key in all the forms an ssh route and its daemon need. Of a host key, the daemon gets `private_pem` and the route
/// `fingerprint`; of a user key, the route gets `private_pem` and the daemon `authorized_key`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPair {
    pub private_pem: String,
    /// One line of an `authorized_keys` file.
    pub authorized_key: String,
    /// SHA-256 in padded base64.
    pub fingerprint: String,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read a private key")]
    Parse(#[source] russh::keys::Error),
    #[error("cannot write a key")]
    Write(#[from] russh::keys::ssh_key::Error),
}

/// A new ed25519 key.
pub fn generate() -> Result<KeyPair, KeyError> {
    let private = new_private();
    let public = private.public_key();
    Ok(KeyPair {
        private_pem: private.to_openssh(LineEnding::LF)?.to_string(),
        authorized_key: public.to_openssh()?,
        fingerprint: STANDARD.encode(Sha256::digest(public.to_bytes()?)),
    })
}

pub(super) fn new_private() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()))
}

/// Reads a key in OpenSSH's or a PEM format.
pub(super) fn parse_private(pem: &str) -> Result<PrivateKey, KeyError> {
    decode_secret_key(pem, None).map_err(KeyError::Parse)
}

/// Whether a daemon's key is the one route data names: by MD5 or SHA-1 in colons, or by SHA-256 in base64, padded or
/// not, with or without its name in front.
pub(super) fn matches(expected: &str, key: &PublicKey) -> bool {
    let Ok(bytes) = key.to_bytes() else {
        return false;
    };
    match expected.len() {
        MD5_CHARACTERS => expected.eq_ignore_ascii_case(&colons(&md5::compute(&bytes).0)),
        SHA1_CHARACTERS => expected.eq_ignore_ascii_case(&colons(&Sha1::digest(&bytes))),
        _ => {
            let expected = expected.strip_prefix("SHA256:").unwrap_or(expected);
            let actual = STANDARD.encode(Sha256::digest(&bytes));
            expected.trim_end_matches('=') == actual.trim_end_matches('=')
        }
    }
}

fn colons(digest: &[u8]) -> String {
    let bytes: Vec<_> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_known_by_each_of_its_fingerprints() {
        let pair = generate().unwrap();
        let private = parse_private(&pair.private_pem).unwrap();
        let key = private.public_key();
        assert_eq!(PublicKey::from_openssh(&pair.authorized_key).unwrap().key_data(), key.key_data());
        let bytes = key.to_bytes().unwrap();
        let unpadded = pair.fingerprint.trim_end_matches('=');
        let known = [
            pair.fingerprint.clone(),
            unpadded.to_owned(),
            format!("SHA256:{unpadded}"),
            colons(&md5::compute(&bytes).0),
            colons(&Sha1::digest(&bytes)),
        ];
        assert_eq!(pair.fingerprint.len(), 44);
        for fingerprint in known {
            assert!(matches(&fingerprint, key), "{fingerprint}");
        }
        let other = generate().unwrap();
        assert!(!matches(&other.fingerprint, key));
        assert!(!matches("", key));
    }
}
