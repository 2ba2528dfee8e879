//! Writes as rows of tables: what a transaction comes to, each row at most once.

use std::collections::HashMap;

use super::Write;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int,
    BigInt,
    Bytes,
}

pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

pub struct Table {
    pub name: &'static str,
    pub key: &'static [Column],
    pub rest: &'static [Column],
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const RECORD: Column = Column { name: "record", kind: Kind::Bytes };
const INDEX: Column = Column { name: "instance_index", kind: Kind::Int };
const PRESENCE: Column = Column { name: "presence", kind: Kind::Int };
const EXPIRE_TIME: Column = Column { name: "expire_time", kind: Kind::BigInt };

const DESIRED_LRPS: usize = 0;
const ACTUAL_LRPS: usize = 1;
const TASKS: usize = 2;
const DOMAINS: usize = 3;

pub static TABLES: [Table; 4] = [
    Table { name: "desired_lrps", key: &[text("process_guid")], rest: &[text("domain"), RECORD] },
    Table {
        name: "actual_lrps",
        key: &[text("process_guid"), INDEX, PRESENCE],
        rest: &[text("domain"), text("state"), text("cell_id"), RECORD],
    },
    Table {
        name: "tasks",
        key: &[text("guid")],
        rest: &[text("domain"), text("state"), text("cell_id"), RECORD],
    },
    Table { name: "domains", key: &[text("domain")], rest: &[EXPIRE_TIME] },
];

impl Table {
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().chain(self.rest)
    }

    /// `a, b, c`.
    pub fn names<'a>(columns: impl Iterator<Item = &'a Column>) -> String {
        columns.map(|column| column.name).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    Text(String),
    Int(i32),
    BigInt(i64),
    Bytes(Vec<u8>),
}

/// A value is asked for as what its column is; as anything else it is empty.
impl Value {
    pub fn text(&self) -> &str {
        if let Value::Text(text) = self { text } else { "" }
    }

    pub fn int(&self) -> i32 {
        if let Value::Int(number) = self { *number } else { 0 }
    }

    pub fn big_int(&self) -> i64 {
        if let Value::BigInt(number) = self { *number } else { 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        if let Value::Bytes(bytes) = self { bytes } else { &[] }
    }
}

/// In the order of the table's columns; only the key's for a row that goes.
pub type Row = Vec<Value>;

#[derive(Debug, Default)]
pub struct Touched {
    pub puts: Vec<Row>,
    pub drops: Vec<Row>,
}

/// What one transaction changes, by table as in [`TABLES`]. No key is there twice.
#[derive(Debug, Default)]
pub struct Batch {
    pub tables: [Touched; TABLES.len()],
}

impl Batch {
    /// Of several writes of one row the last is what counts.
    pub fn of(writes: Vec<Write>) -> Batch {
        let mut last: [HashMap<Row, Option<Row>>; TABLES.len()] = Default::default();
        for write in writes {
            let (table, key, rest) = row(write);
            last[table].insert(key, rest);
        }
        let mut batch = Batch::default();
        for (rows, last) in batch.tables.iter_mut().zip(last) {
            for (mut key, rest) in last {
                match rest {
                    Some(rest) => {
                        key.extend(rest);
                        rows.puts.push(key);
                    }
                    None => rows.drops.push(key),
                }
            }
        }
        batch
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static Table, &Touched)> {
        TABLES.iter().zip(&self.tables)
    }
}

fn row(write: Write) -> (usize, Row, Option<Row>) {
    use Value::{BigInt, Bytes, Int, Text};
    let of_actual = |key: super::ActualKey| vec![Text(key.process_guid), Int(key.index), Int(key.presence)];
    match write {
        Write::PutDesiredLrp { process_guid, domain, record } => {
            (DESIRED_LRPS, vec![Text(process_guid)], Some(vec![Text(domain), Bytes(record)]))
        }
        Write::DropDesiredLrp { process_guid } => (DESIRED_LRPS, vec![Text(process_guid)], None),
        Write::PutActualLrp { key, domain, state, cell_id, record } => {
            let rest = vec![Text(domain), Text(state.into()), Text(cell_id), Bytes(record)];
            (ACTUAL_LRPS, of_actual(key), Some(rest))
        }
        Write::DropActualLrp { key } => (ACTUAL_LRPS, of_actual(key), None),
        Write::PutTask { guid, domain, state, cell_id, record } => {
            let rest = vec![Text(domain), Text(state.into()), Text(cell_id), Bytes(record)];
            (TASKS, vec![Text(guid)], Some(rest))
        }
        Write::DropTask { guid } => (TASKS, vec![Text(guid)], None),
        Write::PutDomain { domain, expires_at_ns } => {
            (DOMAINS, vec![Text(domain)], Some(vec![BigInt(expires_at_ns)]))
        }
        Write::DropDomain { domain } => (DOMAINS, vec![Text(domain)], None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_write_of_a_row_is_the_one_that_counts() {
        let put = |name: &str, at| Write::PutDomain { domain: name.into(), expires_at_ns: at };
        let drop = |name: &str| Write::DropDomain { domain: name.into() };
        let writes = vec![put("a", 1), put("b", 1), drop("a"), put("b", 2), drop("c"), put("c", 3)];
        let mut batch = Batch::of(writes);
        let rows = &mut batch.tables[DOMAINS];
        rows.puts.sort_by_key(|row| format!("{row:?}"));
        let row = |name: &str, at| vec![Value::Text(name.into()), Value::BigInt(at)];
        assert_eq!(rows.puts, [row("b", 2), row("c", 3)]);
        assert_eq!(rows.drops, [vec![Value::Text("a".into())]]);
    }

    #[test]
    fn every_row_has_a_value_for_every_column() {
        let key = super::super::ActualKey { process_guid: "p".into(), index: 0, presence: 0 };
        let text = || "x".to_string();
        let batch = Batch::of(vec![
            Write::PutDesiredLrp { process_guid: text(), domain: text(), record: vec![] },
            Write::PutActualLrp { key, domain: text(), state: "RUNNING", cell_id: text(), record: vec![] },
            Write::PutTask {
                guid: text(),
                domain: text(),
                state: "Pending",
                cell_id: text(),
                record: vec![],
            },
            Write::PutDomain { domain: text(), expires_at_ns: 0 },
        ]);
        for (table, rows) in batch.iter() {
            let kinds: Vec<Kind> = table.columns().map(|column| column.kind).collect();
            let of = |value: &Value| match value {
                Value::Text(_) => Kind::Text,
                Value::Int(_) => Kind::Int,
                Value::BigInt(_) => Kind::BigInt,
                Value::Bytes(_) => Kind::Bytes,
            };
            assert_eq!(rows.puts[0].iter().map(of).collect::<Vec<_>>(), kinds, "{}", table.name);
        }
    }
}
