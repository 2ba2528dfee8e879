//! What stands in a container's `/etc/resolv.conf` and `/etc/hosts`. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host's side of a container's link.
#[derive(Debug, Clone, Copy)]
pub struct HostSide {
    pub v4: Ipv4Addr,
    pub v6: Option<Ipv6Addr>,
}

/// Name servers of the operator replace the host's; without any, a name server of the host that listens on a loopback
/// address is reached by the host's side of the container's link.
pub fn resolv_conf(host: &str, host_ip: HostSide, operator: &[IpAddr], additional: &[IpAddr]) -> String {
    let server = |address: &IpAddr| format!("nameserver {address}");
    let mut lines: Vec<String> = Vec::new();
    if operator.is_empty() {
        for line in
            host.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        {
            lines.extend(from_host(line, host_ip));
        }
        lines.dedup();
    } else {
        lines.extend(operator.iter().map(server));
    }
    lines.extend(additional.iter().map(server));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn from_host(line: &str, host_ip: HostSide) -> Option<String> {
    let Some(address) = line.strip_prefix("nameserver") else { return Some(line.to_owned()) };
    // An IPv6 address may carry a zone, which means nothing in another network namespace.
    let address: IpAddr = address.trim().parse().ok()?;
    let reachable = match (address.is_loopback(), address, host_ip.v6) {
        (false, ..) => address,
        (true, IpAddr::V6(_), Some(v6)) => v6.into(),
        (true, ..) => host_ip.v4.into(),
    };
    Some(format!("nameserver {reachable}"))
}

/// Whether [`resolv_conf`] sends queries to the host's side of the link.
pub fn asks_the_host(host: &str, operator: &[IpAddr]) -> bool {
    let servers = host.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    operator.is_empty()
        && servers
            .filter_map(|address| address.trim().parse::<IpAddr>().ok())
            .any(|address| address.is_loopback())
}

/// Additional entries are whole lines, given by the operator.
pub fn hosts(
    container_ip: Option<IpAddr>,
    container_ipv6: Option<Ipv6Addr>,
    hostname: &str,
    additional: &[String],
) -> String {
    let mut text = String::from("127.0.0.1 localhost\n");
    if container_ipv6.is_some() {
        text += "::1 localhost\n";
    }
    for address in container_ip.into_iter().chain(container_ipv6.map(IpAddr::V6)) {
        text += &format!("{address} {hostname}\n");
    }
    for entry in additional {
        text.push_str(entry);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_follow_the_host_unless_the_operator_names_some() {
        let host_ip = HostSide { v4: Ipv4Addr::new(10, 254, 0, 1), v6: None };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let check = |host: &str, operator: &[&str], additional: &[&str], expected: &str| {
            let parse = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect::<Vec<_>>();
            assert_eq!(
                resolv_conf(host, host_ip, &parse(operator), &parse(additional)),
                expected,
                "{host:?}"
            );
        };
        check("nameserver 1.1.1.1\nsearch a b\n", &[], &[], "nameserver 1.1.1.1\nsearch a b\n");
        check(
            "# x\nnameserver 127.0.0.53\noptions edns0\n",
            &[],
            &[],
            "nameserver 10.254.0.1\noptions edns0\n",
        );
        check("nameserver 127.0.0.53\nnameserver ::1\n", &[], &[], "nameserver 10.254.0.1\n");
        check("nameserver 1.1.1.1", &["9.9.9.9"], &["8.8.8.8"], "nameserver 9.9.9.9\nnameserver 8.8.8.8\n");
        check("nameserver 1.1.1.1", &[], &["8.8.8.8"], "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
        check("nameserver fe80::1%eth0\nnameserver bad", &[], &[], "");
        check("", &[], &[], "");
    }

    #[test]
    fn a_loopback_resolver_of_ipv6_is_reached_by_ipv6_where_the_container_has_it() {
        let host_ip = HostSide { v4: Ipv4Addr::new(10, 254, 0, 1), v6: "fd00::1".parse().ok() };
        let check = |host: &str, expected: &str| {
            assert_eq!(resolv_conf(host, host_ip, &[], &[]), expected, "{host:?}");
        };
        check("nameserver ::1\nnameserver 127.0.0.53\n", "nameserver fd00::1\nnameserver 10.254.0.1\n");
        check("nameserver 2001:db8::53", "nameserver 2001:db8::53\n");
    }

    #[test]
    fn a_loopback_resolver_opens_the_way_to_the_host() {
        assert!(asks_the_host("nameserver 127.0.0.1", &[]));
        assert!(!asks_the_host("nameserver 127.0.0.1", &["9.9.9.9".parse().unwrap()]));
        assert!(!asks_the_host("nameserver 1.1.1.1", &[]));
    }

    #[test]
    fn a_container_knows_itself_by_name() {
        let address = "10.254.0.2".parse().ok();
        let text = hosts(address, None, "web", &["10.0.0.1 db".to_owned()]);
        assert_eq!(text, "127.0.0.1 localhost\n10.254.0.2 web\n10.0.0.1 db\n");
        assert_eq!(hosts(None, None, "web", &[]), "127.0.0.1 localhost\n");
        let both = hosts(address, "fd00::2".parse().ok(), "web", &[]);
        assert_eq!(both, "127.0.0.1 localhost\n::1 localhost\n10.254.0.2 web\nfd00::2 web\n");
    }
}
