//! Chains of others, in any table: their rules as far as it takes to put one between them, to find it again, and to take
//! it away. Rules are found by a comment.

use std::os::fd::{AsFd, BorrowedFd};

use super::look::attributes;
use super::{
    CHAIN_HOOK, CHAIN_NAME, DELETE_RULE, Expression, Family, HOOK_NUMBER, Hook, LIST_ITEM, NEW_CHAIN,
    NEW_RULE, Owner, RULE_CHAIN, RULE_EXPRESSIONS, SUBSYSTEM, TABLE, generation, send,
};
use crate::netlink::message::{Attributes, Header, Message, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, text};
use crate::netlink::{Protocol, Result, Socket};

const GET_CHAIN: u16 = 4;
/// Follows every transaction, and is about no table.
const NEW_GENERATION: u16 = 15;
const GET_RULE: u16 = 7;
const RULE_HANDLE: u16 = 3;
const RULE_POSITION: u16 = 6;
const RULE_USER_DATA: u16 = 7;
/// As the `nft` tool keeps comments: a byte for the kind, one for the length, the text with its end.
const COMMENT: u8 = 0;
const COMMENT_BYTES_MAX: usize = 128;
/// `NFNLGRP_NFTABLES`: everything that changes in any table.
const CHANGES: u32 = 7;

/// What kinds of packets a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packets {
    Both = 1,
    Ipv4 = 2,
    Ipv6 = 10,
}

impl Packets {
    pub fn includes(self, family: Family) -> bool {
        self == Packets::Both || self as u8 == family.number()
    }
}

/// One that packets enter by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OthersChain {
    pub packets: Packets,
    pub table: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OthersRule {
    pub handle: u64,
    pub comment: Option<String>,
    /// The chain that packets go to when the rule is about them.
    pub target: Option<String>,
}

/// In the network namespace of the calling thread.
pub fn chains(hook: Hook) -> Result<Vec<OthersChain>> {
    let mut chains = Vec::new();
    let message = Message::new(SUBSYSTEM | GET_CHAIN, NLM_F_DUMP, &generation(0, 0));
    Socket::open(Protocol::Netfilter)?.dump("list chains", message, |payload| {
        let packets = [Packets::Both, Packets::Ipv4, Packets::Ipv6];
        let Some(packets) = packets.into_iter().find(|kind| payload.first() == Some(&(*kind as u8))) else {
            return;
        };
        let number = value(payload, CHAIN_HOOK).and_then(|place| find(Attributes::new(place), HOOK_NUMBER));
        if number == Some(&(hook as u32).to_be_bytes()[..])
            && let (Some(table), Some(name)) = (value(payload, TABLE), value(payload, CHAIN_NAME))
        {
            chains.push(OthersChain { packets, table: text(table), name: text(name) });
        }
    })?;
    Ok(chains)
}

impl OthersChain {
    pub fn rules(&self) -> Result<Vec<OthersRule>> {
        let mut message = self.message(GET_RULE, NLM_F_DUMP);
        message.text(RULE_CHAIN, &self.name);
        let mut rules = Vec::new();
        let act = format!("list the rules of {} in table {}", self.name, self.table);
        Socket::open(Protocol::Netfilter)?.dump(&act, message, |payload| {
            let of = |kind| value(payload, kind).map(text);
            if of(RULE_CHAIN).as_deref() != Some(&self.name) || of(TABLE).as_deref() != Some(&self.table) {
                return;
            }
            let handle = value(payload, RULE_HANDLE).and_then(|bytes| bytes.try_into().ok());
            let comment = value(payload, RULE_USER_DATA).and_then(|bytes| match bytes {
                [COMMENT, _, comment @ ..] => Some(text(comment)),
                _ => None,
            });
            let target = value(payload, RULE_EXPRESSIONS).and_then(target);
            rules.extend(handle.map(|handle| OthersRule {
                handle: u64::from_be_bytes(handle),
                comment,
                target,
            }));
        })?;
        Ok(rules)
    }

    /// Puts rules into the chain, in the place of those of the handles `old`: before that of the handle `before`, or at the end.
    pub fn put(
        &self,
        comment: &str,
        rules: &[Vec<Expression>],
        before: Option<u64>,
        old: &[u64],
    ) -> Result<()> {
        let mut messages: Vec<_> = old.iter().map(|handle| self.deletion(*handle)).collect();
        for rule in rules {
            let mut message =
                self.message(NEW_RULE, NLM_F_CREATE | if before.is_some() { 0 } else { NLM_F_APPEND });
            message.text(RULE_CHAIN, &self.name).nested(RULE_EXPRESSIONS, |list| {
                for expression in rule {
                    expression.encode(list);
                }
            });
            if let Some(before) = before {
                message.attribute(RULE_POSITION, &before.to_be_bytes());
            }
            let comment = &comment.as_bytes()[..comment.len().min(COMMENT_BYTES_MAX)];
            let user_data = [&[COMMENT, comment.len() as u8 + 1], comment, &[0]].concat();
            message.attribute(RULE_USER_DATA, &user_data);
            messages.push(message);
        }
        send(&format!("put a rule into {} of table {}", self.name, self.table), messages)
    }

    pub fn delete(&self, handles: &[u64]) -> Result<()> {
        let messages = handles.iter().map(|handle| self.deletion(*handle)).collect();
        send(&format!("delete a rule of {} in table {}", self.name, self.table), messages)
    }

    fn deletion(&self, handle: u64) -> Message {
        let mut message = self.message(DELETE_RULE, 0);
        message.text(RULE_CHAIN, &self.name).attribute(RULE_HANDLE, &handle.to_be_bytes());
        message
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let mut message = Message::new(SUBSYSTEM | kind, flags, &generation(self.packets as u8, 0));
        message.text(TABLE, &self.table);
        message
    }
}

fn value(payload: &[u8], kind: u16) -> Option<&[u8]> {
    find(attributes(payload), kind)
}

fn find(mut attributes: Attributes<'_>, kind: u16) -> Option<&[u8]> {
    attributes.find(|found| found.0 == kind).map(|(_, value)| value)
}

/// Of the expressions of a rule: the verdict is nested in the data of an "immediate" expression.
fn target(expressions: &[u8]) -> Option<String> {
    const EXPRESSION_DATA: u16 = 2;
    const IMMEDIATE_DATA: u16 = 2;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CHAIN: u16 = 2;
    let items = Attributes::new(expressions).filter(|(kind, _)| *kind == LIST_ITEM);
    let mut found = items.filter_map(|(_, item)| {
        let nested = [EXPRESSION_DATA, IMMEDIATE_DATA, DATA_VERDICT, VERDICT_CHAIN];
        (find(Attributes::new(item), 1)? == b"immediate\0").then_some(())?;
        nested.into_iter().try_fold(item, |outer, kind| find(Attributes::new(outer), kind))
    });
    found.next().map(text)
}

/// What was heard of changes since the last time, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    Nothing,
    /// Rules or chains of others came or went.
    OthersChanged,
    /// Our table was changed by somebody else, or deleted; or it may have been.
    OursChanged,
}

/// What others do to tables while we listen; readable when there is something to hear.
pub struct Changes {
    socket: Socket,
    own_table: String,
    owner: Option<u32>,
}

impl Changes {
    /// In the network namespace of the calling thread. What its owner does to `own_table` is not of others.
    pub fn open(own_table: &str, owner: &Owner) -> Result<Self> {
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.join(CHANGES)?;
        Ok(Self { socket, own_table: own_table.into(), owner: owner.port()? })
    }

    /// Since the last call. Does not wait.
    pub fn heard(&self) -> Result<Heard> {
        let mut most = Heard::Nothing;
        let complete = self.socket.hear(|header, payload| most = most.max(self.one(header, payload)))?;
        Ok(if complete { most } else { Heard::OursChanged })
    }

    fn one(&self, header: Header, payload: &[u8]) -> Heard {
        let is_ours = value(payload, TABLE).map(text).as_deref() == Some(&self.own_table);
        match header.kind.checked_sub(SUBSYSTEM) {
            Some(NEW_GENERATION) | None => Heard::Nothing,
            Some(_) if is_ours && self.owner == Some(header.port) => Heard::Nothing,
            Some(_) if is_ours => Heard::OursChanged,
            Some(NEW_CHAIN | NEW_RULE | DELETE_RULE) => Heard::OthersChanged,
            Some(_) => Heard::Nothing,
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
