//! A way from one process to another that can be cut, or that loses answers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    All,
    Nothing,
    /// Requests arrive; at the first byte of an answer the connection breaks.
    Requests,
    /// All, but each answer takes so long.
    Slowly(Duration),
}

pub struct Gate {
    pub address: SocketAddr,
    passes: watch::Sender<Passes>,
}

impl Gate {
    pub async fn to(target: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (passes, seen) = watch::channel(Passes::All);
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move { pass(from, target, seen).await });
            }
        });
        Gate { address, passes }
    }

    /// From now on; connections that were made before break.
    pub fn lets(&self, passes: Passes) {
        self.passes.send_replace(passes);
    }
}

async fn pass(from: TcpStream, target: SocketAddr, mut seen: watch::Receiver<Passes>) {
    let passes = *seen.borrow_and_update();
    if passes == Passes::Nothing {
        return;
    }
    let Ok(to) = TcpStream::connect(target).await else { return };
    let (mut client_says, mut client_hears) = from.into_split();
    let (mut server_says, mut server_hears) = to.into_split();
    let asking = async { _ = copy(&mut client_says, &mut server_hears).await };
    let answering = async {
        match passes {
            Passes::Requests => _ = server_says.read(&mut [0; 1]).await,
            Passes::Slowly(pause) => {
                let mut piece = [0; 64 * 1024];
                while let Ok(length @ 1..) = server_says.read(&mut piece).await {
                    tokio::time::sleep(pause).await;
                    if client_hears.write_all(&piece[..length]).await.is_err() {
                        return;
                    }
                }
            }
            _ => _ = copy(&mut server_says, &mut client_hears).await,
        }
    };
    tokio::select! {
        () = asking => {}
        () = answering => {}
        _ = seen.changed() => {}
    }
}
