//! A Task's result: one file, read from its container once its action has succeeded.

use std::io::{Cursor, Read};

use tokio::io::AsyncReadExt;

use crate::Containers;

pub const RESULT_FILE_BYTES_MAX: u64 = 50 * 1024;
/// What a tar stream has before and after the file: headers, extended headers, padding.
const TAR_OVERHEAD_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot stream the result file")]
    Stream(#[source] executor::Error),
    #[error("cannot read the result file: {0}")]
    Read(#[from] std::io::Error),
    #[error("the result is not a file")]
    NoFile,
    #[error("result file is too large (over {RESULT_FILE_BYTES_MAX} bytes)")]
    TooLarge,
}

/// Bytes that are not UTF-8 are replaced: a result is text.
pub async fn read(executor: &dyn Containers, guid: &str, path: &str) -> Result<String, Error> {
    let stream = executor.files(guid, path).await.map_err(Error::Stream)?;
    let mut tar = Vec::new();
    stream.take(RESULT_FILE_BYTES_MAX + TAR_OVERHEAD_BYTES_MAX).read_to_end(&mut tar).await?;
    first_file(&tar)
}

fn first_file(tar: &[u8]) -> Result<String, Error> {
    let mut archive = tar::Archive::new(Cursor::new(tar));
    let entry = archive.entries()?.next().ok_or(Error::NoFile)??;
    if entry.size() > RESULT_FILE_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let mut content = Vec::new();
    entry.take(RESULT_FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, "result", content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn the_first_file_of_the_stream_is_the_result() {
        assert_eq!(first_file(&tar_of(b"42")).unwrap(), "42");
        assert_eq!(first_file(&tar_of(b"")).unwrap(), "");
        let largest = vec![b'a'; RESULT_FILE_BYTES_MAX as usize];
        assert_eq!(first_file(&tar_of(&largest)).unwrap().len(), largest.len());
    }

    #[test]
    fn a_directory_is_an_empty_result() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, "result/", &b""[..]).unwrap();
        assert_eq!(first_file(&builder.into_inner().unwrap()).unwrap(), "");
    }

    #[test]
    fn what_is_too_large_or_no_file_is_refused() {
        let large = vec![b'a'; RESULT_FILE_BYTES_MAX as usize + 1];
        assert!(matches!(first_file(&tar_of(&large)), Err(Error::TooLarge)));
        let mut streamed = tar_of(&vec![b'a'; 1 << 20]);
        streamed.truncate((RESULT_FILE_BYTES_MAX + TAR_OVERHEAD_BYTES_MAX) as usize);
        assert!(matches!(first_file(&streamed), Err(Error::TooLarge)));
        assert!(matches!(first_file(&[0; 1024]), Err(Error::NoFile)));
        assert!(matches!(first_file(b""), Err(Error::NoFile)));
    }
}
