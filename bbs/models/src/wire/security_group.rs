//! Egress rules on the wire.

use prost::Message;
use serde::{Deserialize, Serialize};

use super::Invalid;
use super::json::*;
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    #[prost(uint32, tag = "1")]
    pub start: u32,
    #[prost(uint32, tag = "2")]
    pub end: u32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct IcmpInfo {
    #[prost(int32, tag = "1")]
    #[serde(rename = "type")]
    pub kind: i32,
    #[prost(int32, tag = "2")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityGroupRule {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `all`.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub destinations: Vec<String>,
    #[prost(uint32, repeated, packed = "false", tag = "3")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub ports: Vec<u32>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<PortRange>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_info: Option<IcmpInfo>,
    #[prost(bool, tag = "6")]
    pub log: bool,
    #[prost(string, repeated, tag = "7")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub annotations: Vec<String>,
}

impl TryFrom<SecurityGroupRule> for models::SecurityGroupRule {
    type Error = Invalid;

    fn try_from(wire: SecurityGroupRule) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let protocol = invalid.take(parse_protocol(&wire));
        let destinations = parse_destinations(&wire.destinations);
        match (protocol, destinations) {
            (Some(protocol), Ok(destinations)) => {
                Ok(Self { protocol, destinations, log: wire.log, annotations: wire.annotations })
            }
            (_, Err(text)) => {
                invalid.add_field(&format!("destinations [ {text} ]"));
                Err(invalid)
            }
            (None, Ok(_)) => Err(invalid),
        }
    }
}

fn parse_protocol(wire: &SecurityGroupRule) -> Result<models::RuleProtocol, Invalid> {
    let mut invalid = Invalid::default();
    let with_ports = matches!(wire.protocol.as_str(), "tcp" | "udp");
    let with_icmp = matches!(wire.protocol.as_str(), "icmp" | "icmpv6");
    if !with_ports && !with_icmp && wire.protocol != "all" {
        return Err(Invalid::field("protocol"));
    }
    let ports = if with_ports { invalid.take(parse_rule_ports(wire)) } else { None };
    if !with_ports {
        invalid.require(wire.port_range.is_none(), "port_range");
        invalid.require(wire.ports.is_empty(), "ports");
    }
    if with_icmp {
        let field = if wire.protocol == "icmp" { "icmp_info" } else { "icmpv6_info" };
        invalid.require(wire.icmp_info.is_some(), field);
    } else {
        invalid.require(wire.icmp_info.is_none(), "icmp_info");
    }
    let icmp = wire.icmp_info.as_ref().map(|info| models::IcmpType { kind: info.kind, code: info.code });
    match (wire.protocol.as_str(), ports, icmp) {
        ("tcp", Some(ports), None) => invalid.or(models::RuleProtocol::Tcp(ports)),
        ("udp", Some(ports), None) => invalid.or(models::RuleProtocol::Udp(ports)),
        ("icmp", None, Some(icmp)) => invalid.or(models::RuleProtocol::Icmp(icmp)),
        ("icmpv6", None, Some(icmp)) => invalid.or(models::RuleProtocol::IcmpV6(icmp)),
        ("all", None, None) => invalid.or(models::RuleProtocol::All),
        _ => Err(invalid),
    }
}

fn parse_rule_ports(wire: &SecurityGroupRule) -> Result<models::RulePorts, Invalid> {
    let mut invalid = Invalid::default();
    let port = |port: u32| u16::try_from(port).ok().filter(|&port| port > 0);
    match (&wire.port_range, wire.ports.is_empty()) {
        (None, true) => invalid.add("Missing required field: ports or port_range"),
        (Some(_), false) => invalid.add("Invalid: ports and port_range provided"),
        (Some(range), true) => match (port(range.start), port(range.end)) {
            (Some(start), Some(end)) if start <= end => return Ok(models::RulePorts::Range { start, end }),
            _ => invalid.add_field("port_range"),
        },
        (None, false) => match wire.ports.iter().copied().map(port).collect() {
            Some(ports) => return Ok(models::RulePorts::List(ports)),
            None => invalid.add_field("ports"),
        },
    }
    Err(invalid)
}

fn parse_destinations(wire: &[String]) -> Result<Vec<models::Destination>, String> {
    if wire.is_empty() {
        return Err("Must have at least 1 destination".to_string());
    }
    let (parsed, refused): (Vec<_>, Vec<_>) =
        wire.iter().map(|text| text.parse::<models::Destination>()).partition(Result::is_ok);
    if refused.is_empty() {
        return Ok(parsed.into_iter().filter_map(Result::ok).collect());
    }
    let texts: Vec<String> =
        refused.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    Err(texts.join(", "))
}

impl From<models::SecurityGroupRule> for SecurityGroupRule {
    fn from(rule: models::SecurityGroupRule) -> Self {
        let mut wire = Self {
            destinations: rule.destinations.iter().map(|text| text.as_str().to_string()).collect(),
            log: rule.log,
            annotations: rule.annotations,
            ..Self::default()
        };
        let (protocol, ports, icmp) = match rule.protocol {
            models::RuleProtocol::All => ("all", None, None),
            models::RuleProtocol::Tcp(ports) => ("tcp", Some(ports), None),
            models::RuleProtocol::Udp(ports) => ("udp", Some(ports), None),
            models::RuleProtocol::Icmp(icmp) => ("icmp", None, Some(icmp)),
            models::RuleProtocol::IcmpV6(icmp) => ("icmpv6", None, Some(icmp)),
        };
        wire.protocol = protocol.to_string();
        match ports {
            Some(models::RulePorts::List(ports)) => wire.ports = ports.into_iter().map(u32::from).collect(),
            Some(models::RulePorts::Range { start, end }) => {
                wire.port_range = Some(PortRange { start: start.into(), end: end.into() });
            }
            None => {}
        }
        wire.icmp_info = icmp.map(|icmp| IcmpInfo { kind: icmp.kind, code: icmp.code });
        wire
    }
}
