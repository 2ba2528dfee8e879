//! What a packet costs on a host with one container, and on a host with many: two hosts of the benchmark's own, whose
//! packets take turns, so that whatever else the machine does meets both.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::Result;
use garden_sys::netlink::in_namespace;
use rustix::net::sockopt;

use crate::connect::WORLD;
use crate::figures::Report;

pub const FIRST_PORT: u16 = 20_000;
/// In a turn.
const PACKETS: u16 = 500;
const TURNS: usize = 100;
/// All that is sent is heard and dropped; to answer that nobody listens would cost more than what is measured.
const HEARD_BYTES: usize = 2048;

/// Keeps the ports open to which packets are sent.
pub fn listen(world: &OwnedFd) -> Result<Vec<UdpSocket>> {
    in_namespace(world.as_fd(), || {
        let open = |port| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            sockopt::set_socket_recv_buffer_size(&socket, HEARD_BYTES)?;
            Ok(socket)
        };
        (FIRST_PORT..FIRST_PORT + PACKETS).map(open).collect()
    })?
}

/// Microseconds each.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Of flows that are not known yet: every chain looks at them.
    new: f64,
    known: f64,
}

fn turn(container: &OwnedFd) -> Result<Turn> {
    in_namespace(container.as_fd(), || {
        // Of another port each time: none of its flows is known.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(Turn { new: send(&socket)?, known: send(&socket)? })
    })?
}

fn send(socket: &UdpSocket) -> Result<f64> {
    let began = Instant::now();
    for port in FIRST_PORT..FIRST_PORT + PACKETS {
        socket.send_to(&[0; 64], (WORLD, port))?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(PACKETS))
}

/// `alone` is the only container of its host, `among` is one of `many`.
pub fn compare(alone: &OwnedFd, among: &OwnedFd, many: usize, report: &mut Report) -> Result<()> {
    let mut pairs = Vec::new();
    for number in 0..TURNS {
        let (first, second) = if number % 2 == 0 { (alone, among) } else { (among, alone) };
        let (first, second) = (turn(first)?, turn(second)?);
        pairs.push(if number % 2 == 0 { (first, second) } else { (second, first) });
    }
    let of = |value: &dyn Fn(&(Turn, Turn)) -> f64| median(pairs.iter().map(value).collect());
    report.note(&format!(
        "a packet of a new flow: {:.2} us alone, {:.2} us among {many}; of a known one {:.2} and {:.2} us, {:.2} times as much",
        of(&|pair| pair.0.new),
        of(&|pair| pair.1.new),
        of(&|pair| pair.0.known),
        of(&|pair| pair.1.known),
        of(&|pair| pair.1.known / pair.0.known),
    ));
    report.figure("net_packet_cost_1000_vs_1", of(&|pair| pair.1.new / pair.0.new), "ratio");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
