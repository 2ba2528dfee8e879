//! What is there of a table.

use std::collections::BTreeMap;

use super::{
    CHAIN_NAME, ELEMENT_KEY, ELEMENT_KEY_END, ELEMENTS_LIST, ELEMENTS_SET, Family, LIST_ITEM, RULE_CHAIN,
    SUBSYSTEM, TABLE, generation,
};
use crate::netlink::message::{Attributes, Message, NLM_F_ACK, NLM_F_DUMP, text};
use crate::netlink::{Protocol, Result, Socket};

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_ELEMENTS: u16 = 13;
const GENERATION_BYTES: usize = 4;

/// One table, to be looked at.
pub struct Look<'a> {
    socket: Socket,
    table: &'a str,
    family: Family,
}

impl<'a> Look<'a> {
    /// In the network namespace of the calling thread.
    pub fn open(table: &'a str, family: Family) -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)?, table, family })
    }

    pub fn exists(&self) -> Result<bool> {
        let mut message = self.ask(GET_TABLE, NLM_F_ACK);
        message.text(TABLE, self.table);
        match self.socket.dump(&format!("look for table {}", self.table), message, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many rules each chain has.
    pub fn chains(&self) -> Result<BTreeMap<String, usize>> {
        let act = format!("list the rules of table {}", self.table);
        let of_ours = |payload: &[u8], name: u16| {
            let attribute =
                |kind| attributes(payload).find(|found| found.0 == kind).map(|(_, value)| text(value));
            // The kernel tells those of all tables.
            attribute(TABLE).filter(|table| table == self.table).and_then(|_| attribute(name))
        };
        let mut chains = BTreeMap::new();
        self.socket.dump(&act, self.ask(GET_CHAIN, NLM_F_DUMP), |payload| {
            chains.extend(of_ours(payload, CHAIN_NAME).map(|name| (name, 0)));
        })?;
        let mut rules = self.ask(GET_RULE, NLM_F_DUMP);
        rules.text(TABLE, self.table);
        self.socket.dump(&act, rules, |payload| {
            if let Some(name) = of_ours(payload, RULE_CHAIN) {
                *chains.entry(name).or_default() += 1;
            }
        })?;
        Ok(chains)
    }

    /// Those of ranges with their ends behind them.
    pub fn keys(&self, set: &str) -> Result<Vec<Vec<u8>>> {
        let mut message = self.ask(GET_ELEMENTS, NLM_F_DUMP);
        message.text(TABLE, self.table).text(ELEMENTS_SET, set);
        let mut keys = Vec::new();
        self.socket.dump(&format!("list set {set}"), message, |payload| {
            let lists = attributes(payload).filter(|(kind, _)| *kind == ELEMENTS_LIST);
            let items =
                lists.flat_map(|(_, list)| Attributes::new(list)).filter(|(kind, _)| *kind == LIST_ITEM);
            keys.extend(items.map(|(_, item)| {
                let ends =
                    Attributes::new(item).filter(|(kind, _)| [ELEMENT_KEY, ELEMENT_KEY_END].contains(kind));
                ends.filter_map(|(_, key)| Some(Attributes::new(key).next()?.1)).flatten().copied().collect()
            }));
        })?;
        Ok(keys)
    }

    fn ask(&self, kind: u16, flags: u16) -> Message {
        Message::new(SUBSYSTEM | kind, flags, &generation(self.family.number(), 0))
    }
}

pub(super) fn attributes(payload: &[u8]) -> Attributes<'_> {
    Attributes::new(payload.get(GENERATION_BYTES..).unwrap_or_default())
}
