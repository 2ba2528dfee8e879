//! The IPv4 addresses of this network namespace, asked of the kernel over netlink: a static program in an empty root
//! has no other safe way. Only what a health check needs; it sets nothing.

use std::{io, net::Ipv4Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// The request and its parts, from `linux/rtnetlink.h`.
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;
/// The kernel never sends a larger part of a dump.
const PART_BYTES_MAX: usize = 32 * 1024;

/// Every IPv4 address, in the order of the interfaces' numbers.
pub fn ipv4_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 is NETLINK_ROUTE.
        None,
    )?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut addresses = Vec::new();
    let mut part = vec![0; PART_BYTES_MAX];
    loop {
        let (length, _) = recv(&socket, &mut part[..], RecvFlags::empty())?;
        if read_part(&part[..length], &mut addresses)? {
            return Ok(addresses);
        }
    }
}

fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + ADDRESS_HEADER_BYTES);
    message.extend(((HEADER_BYTES + ADDRESS_HEADER_BYTES) as u32).to_ne_bytes());
    message.extend(RTM_GETADDR.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.push(AddressFamily::INET.as_raw() as u8);
    message.resize(HEADER_BYTES + ADDRESS_HEADER_BYTES, 0);
    message
}

/// Takes the addresses out of one part of the answer; `true` after the last part.
fn read_part(mut part: &[u8], addresses: &mut Vec<Ipv4Addr>) -> io::Result<bool> {
    while let Some((length, kind)) = header(part) {
        let message = part.get(..length).ok_or(io::ErrorKind::InvalidData)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::Error::other("the kernel refused to list addresses")),
            RTM_NEWADDR => addresses.extend(address(message)),
            _ => {}
        }
        part = part.get(align(length)..).unwrap_or_default();
    }
    Ok(false)
}

fn header(part: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(part.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(part.get(4..6)?.try_into().ok()?);
    (length >= HEADER_BYTES).then_some((length, kind))
}

/// The local address of one RTM_NEWADDR message. On a point-to-point link IFA_ADDRESS is the peer, so IFA_LOCAL wins.
fn address(message: &[u8]) -> Option<Ipv4Addr> {
    let mut attributes = message.get(HEADER_BYTES + ADDRESS_HEADER_BYTES..)?;
    let mut found = None;
    while attributes.len() >= 4 {
        let length = u16::from_ne_bytes(attributes[..2].try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes[2..4].try_into().ok()?);
        let value: Option<[u8; 4]> = attributes.get(4..length).and_then(|value| value.try_into().ok());
        match (kind, value) {
            (IFA_LOCAL, Some(value)) => return Some(value.into()),
            (IFA_ADDRESS, Some(value)) => found = Some(value.into()),
            _ => {}
        }
        attributes = attributes.get(align(length.max(4))..).unwrap_or_default();
    }
    found
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_found() {
        assert!(ipv4_addresses().unwrap().contains(&Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn cut_answers_do_not_panic() {
        let mut whole = request();
        whole[4] = RTM_NEWADDR as u8;
        for length in 0..whole.len() {
            let _ = read_part(&whole[..length], &mut Vec::new());
        }
    }
}
