//! Every socket of `diego dev`, bound before anything starts: a port that is taken stops it before it did something.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use clap::Args;
use diego_base::serve::Listen;

#[derive(Args, Clone)]
pub struct Addresses {
    /// Take a free port of 127.0.0.1 for every address below.
    #[arg(long)]
    pub any_port: bool,
    /// Where apps answer HTTP by their host names.
    #[arg(long, default_value = "127.0.0.1:8080")]
    router: SocketAddr,
    /// Where ssh clients connect.
    #[arg(long, default_value = "127.0.0.1:2222")]
    ssh: SocketAddr,
    /// The private registry cache.
    #[arg(long, default_value = "127.0.0.1:5050")]
    registry_cache: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:8082")]
    file_server: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:8889")]
    bbs: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:9016")]
    auctioneer: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:1801")]
    rep: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:1800")]
    rep_admin: SocketAddr,
}

pub struct Socket {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Socket {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn listen(self) -> Listen {
        Listen::Bound(self.listener)
    }
}

pub struct Sockets {
    pub router: Socket,
    pub ssh: Socket,
    pub registry_cache: Socket,
    pub file_server: Socket,
    pub bbs: Socket,
    pub auctioneer: Socket,
    pub rep: Socket,
    pub rep_admin: Socket,
}

impl Sockets {
    /// `known` are the addresses of an earlier run on the same state: with `--any-port` they are taken again where they
    /// are free, for what is desired names them.
    pub fn bind(addresses: &Addresses, known: &Known) -> Result<Sockets> {
        let bind = |name: &str, wanted: SocketAddr| {
            let wanted = if addresses.any_port { SocketAddr::from(([127, 0, 0, 1], 0)) } else { wanted };
            let again = known
                .get(name)
                .filter(|_| addresses.any_port)
                .and_then(|known| TcpListener::bind(known).ok());
            let listener = match again {
                Some(listener) => listener,
                None => TcpListener::bind(wanted).with_context(|| {
                    format!("cannot listen on {wanted}; choose another with --{name}, or any with --any-port")
                })?,
            };
            let address = listener.local_addr().context("cannot tell a socket's address")?;
            anyhow::Ok(Socket { listener, address })
        };
        Ok(Sockets {
            router: bind("router", addresses.router)?,
            ssh: bind("ssh", addresses.ssh)?,
            registry_cache: bind("registry-cache", addresses.registry_cache)?,
            file_server: bind("file-server", addresses.file_server)?,
            bbs: bind("bbs", addresses.bbs)?,
            auctioneer: bind("auctioneer", addresses.auctioneer)?,
            rep: bind("rep", addresses.rep)?,
            rep_admin: bind("rep-admin", addresses.rep_admin)?,
        })
    }

    /// What the next run on this state is to know.
    pub fn known(&self) -> Known {
        let named = [
            ("router", &self.router),
            ("ssh", &self.ssh),
            ("registry-cache", &self.registry_cache),
            ("file-server", &self.file_server),
            ("bbs", &self.bbs),
            ("auctioneer", &self.auctioneer),
            ("rep", &self.rep),
            ("rep-admin", &self.rep_admin),
        ];
        named.map(|(name, socket)| (name.to_owned(), socket.address)).into()
    }
}

/// Addresses by the names of their flags.
pub type Known = BTreeMap<String, SocketAddr>;
