//! Tar streams on their way to clients: in chunks, to an old client raw. A failure half-way is an end without the last
//! chunk. What lies in a pipe the kernel moves to the connection; it does not pass through here.

use std::any::Any;
use std::io;
use std::os::fd::AsFd;

use garden_client::Reader;
use http::StatusCode;
use tokio::io::AsyncReadExt;

use super::connection::{AnswerHead, Connection};
use crate::containerizer::TarOut;

/// Sent at once; as much as a pipe holds.
const CHUNK_BYTES: usize = 256 << 10;

pub async fn send(
    connection: &Connection,
    chunks: bool,
    persistent: bool,
    mut tar: Reader,
) -> io::Result<()> {
    if !chunks {
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/x-tar\r\n\r\n").await?;
    } else {
        let content_type = Some("application/x-tar");
        let head = AnswerHead { status: StatusCode::OK, content_type, persistent, more: "" };
        connection.send(&head.bytes(None)).await?;
    }
    // Of the chunk before, sent with the next one's line.
    let (mut piece, mut line_end) = (Vec::new(), "");
    loop {
        let length = match piped(&mut tar) {
            Some(tar) => tar.available().await?.min(CHUNK_BYTES),
            None => {
                piece.resize(CHUNK_BYTES, 0);
                tar.read(&mut piece).await?
            }
        };
        if chunks {
            let last = if length == 0 { "\r\n" } else { "" };
            connection.send(format!("{line_end}{length:x}\r\n{last}").as_bytes()).await?;
            line_end = "\r\n";
        }
        match piped(&mut tar) {
            Some(tar) => connection.send_from(tar.as_fd(), length).await?,
            None => connection.send(&piece[..length]).await?,
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn piped(tar: &mut Reader) -> Option<&mut TarOut> {
    let tar: &mut dyn Any = &mut **tar;
    tar.downcast_mut()
}
