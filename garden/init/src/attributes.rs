//! Extended attributes of files on their way through archives, as other programs write them there: PAX records named
//! `SCHILY.xattr.…`.
//!
//! Kept are those of users and the capabilities of programs; what else there is belongs to the file system or to the
//! host's security. Where a file system or a user may not have an attribute, a file comes without it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{XattrFlags, fsetxattr, lgetxattr, llistxattr};
use rustix::io::Errno;
use tar::Entry;

const RECORD: &[u8] = b"SCHILY.xattr.";
const CAPABILITY: &[u8] = b"security.capability";
const OF_USERS: &[u8] = b"user.";
/// The kernel's limits for the list of a file's names, and for a value.
const LIST_BYTES_MAX: usize = 64 * 1024;
const VALUE_BYTES_MAX: usize = 64 * 1024;

fn is_kept(name: &[u8]) -> bool {
    name == CAPABILITY || name.starts_with(OF_USERS)
}

/// Gives a file what its entry says it had. After everything else: to write to a program takes its capabilities.
pub fn restore<R: Read>(entry: &mut Entry<'_, R>, file: &File) -> io::Result<()> {
    let Ok(Some(records)) = entry.pax_extensions() else { return Ok(()) };
    // A value with a line's end in it ends the records for the crate that reads them; those before it count.
    for record in records.map_while(Result::ok) {
        let Some(name) = record.key_bytes().strip_prefix(RECORD).filter(|name| is_kept(name)) else {
            continue;
        };
        let Ok(name) = CString::new(name) else { continue };
        match fsetxattr(file, &name, record.value_bytes(), XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::RANGE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The records of a file's attributes; empty: it has none to be kept, or none that may be read.
pub fn records(path: &Path) -> io::Result<Vec<u8>> {
    let mut list = [0; 1024];
    let listed = match llistxattr(path, &mut list) {
        Err(Errno::RANGE) => {
            let mut list = vec![0; LIST_BYTES_MAX];
            llistxattr(path, &mut list).map(|length| list[..length].to_vec())
        }
        other => other.map(|length| list[..length].to_vec()),
    };
    let names = match listed {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut records = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let mut value = vec![0; VALUE_BYTES_MAX];
        match lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value) {
            Ok(length) => record(&mut records, &[RECORD, name].concat(), &value[..length]),
            // Removed meanwhile, or not ours to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(records)
}

/// `length key=value\n`, the length's own digits included.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(&[key, b"=", value, b"\n"].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for (value, expected) in [("x", "6 k=x\n"), ("1234", "9 k=1234\n"), ("12345", "11 k=12345\n")] {
            let mut records = Vec::new();
            record(&mut records, b"k", value.as_bytes());
            assert_eq!(String::from_utf8(records).unwrap(), expected);
        }
        let mut long = Vec::new();
        record(&mut long, b"k", &[b'v'; 93]);
        assert!(long.starts_with(b"100 k=") || long.starts_with(b"99 k="));
        assert_eq!(long.len().to_string().as_bytes(), long.split(|byte| *byte == b' ').next().unwrap());
    }
}
