//! MySQL and MariaDB: a commit is one text of several statements, which the server carries out without asking back.
//!
//! Every value travels as hexadecimal digits, so that nothing has to be escaped. The first statement changes the row of
//! `writer`, and overflows if that has not our epoch: the server stops there, whatever its mode.

use std::fmt::Write as _;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use super::batch::{Batch, Table, Touched, Value};
use super::fence::{Held, Refusal, Session};
use super::location::{Host, Server, Trust};
use super::schema::Dialect;
use super::{Contents, Record};

/// Whoever comes for a lock waits a moment for its holder's end; a connection that is silent for longer than we ever
/// are is one whose process is gone, and its transaction ends with it.
const SESSION: &str =
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', SESSION autocommit = 1,
     SESSION innodb_lock_wait_timeout = 8, SESSION wait_timeout = 60";
const MIGRATION_LOCK_SECONDS: u32 = 600;
/// Of one text; a single row may be larger, up to what the server takes.
const TEXT_BYTES: usize = 1 << 20;
/// Beside the text of a row: what the server's limit has to hold, too.
const PACKET_OVERHEAD_BYTES: usize = 1024;

mod code {
    pub const OUT_OF_RANGE: u16 = 1690;
    /// A server that stops, interrupts, or ends the connection.
    pub const PASSING: [u16; 11] = [1040, 1053, 1205, 1213, 1290, 1317, 1836, 1927, 1047, 1180, 3100];
}

pub struct Client {
    connection: MySqlConnection,
    packet_bytes_max: usize,
}

impl Session for Client {
    type Server = Server;

    async fn connect(server: &Server) -> Result<Client, sqlx::Error> {
        let mut connection = options(server)?.connect().await?;
        connection.execute(SESSION).await?;
        let packet: u64 =
            sqlx::query_scalar("SELECT @@max_allowed_packet").fetch_one(&mut connection).await?;
        Ok(Client { connection, packet_bytes_max: usize::try_from(packet).unwrap_or(usize::MAX) })
    }

    /// Under a lock of the session: two that start together take turns. A step that was killed is done again.
    async fn migrate(&mut self) -> Result<i64, sqlx::Error> {
        let taken =
            sqlx::query_scalar::<_, Option<i64>>("SELECT GET_LOCK(CONCAT('diego-', MD5(DATABASE())), ?)")
                .bind(MIGRATION_LOCK_SECONDS)
                .fetch_one(&mut self.connection)
                .await;
        match taken {
            Ok(Some(1)) => {
                let version = self.steps().await?;
                self.connection.execute("DO RELEASE_LOCK(CONCAT('diego-', MD5(DATABASE())))").await?;
                Ok(version)
            }
            Ok(_) => Err(sqlx::Error::Protocol("another BBS's migration goes on for too long".into())),
            // Some clusters have no such locks; what two of them do at once, each finds done.
            Err(error) if number_of(&error).is_some() => self.steps().await,
            Err(error) => Err(error),
        }
    }

    async fn holder(&mut self) -> Result<Option<Held>, sqlx::Error> {
        let row =
            self.connection.fetch_optional("SELECT owner, epoch, commits FROM writer WHERE id = 1").await?;
        row.map(|row| Ok(Held { owner: row.try_get(0)?, epoch: row.try_get(1)?, commits: row.try_get(2)? }))
            .transpose()
    }

    async fn raise(&mut self, owner: &str, from: Option<i64>) -> Result<bool, sqlx::Error> {
        let query = match from {
            None => sqlx::query("INSERT IGNORE INTO writer (id, owner, epoch, commits) VALUES (1, ?, 1, 0)")
                .bind(owner),
            Some(from) => {
                sqlx::query("UPDATE writer SET owner = ?, epoch = epoch + 1 WHERE id = 1 AND epoch = ?")
                    .bind(owner)
                    .bind(from)
            }
        };
        Ok(query.execute(&mut self.connection).await?.rows_affected() == 1)
    }

    async fn commit(&mut self, epoch: i64, number: i64, batch: &Batch) -> Result<bool, sqlx::Error> {
        let texts = texts(epoch, number, batch);
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        if longest + PACKET_OVERHEAD_BYTES > self.packet_bytes_max {
            let max = self.packet_bytes_max;
            return Err(sqlx::Error::Encode(
                format!("a record needs {longest} bytes to be sent, and max_allowed_packet is {max}").into(),
            ));
        }
        for text in texts {
            match self.connection.execute(sqlx::raw_sql(AssertSqlSafe(text))).await {
                Ok(_) => {}
                Err(error) if number_of(&error) == Some(code::OUT_OF_RANGE) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    async fn load(&mut self) -> Result<Contents, sqlx::Error> {
        let domains: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT domain, expire_time FROM domains").fetch_all(&mut self.connection).await?;
        let text =
            |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)));
        Ok(Contents {
            desired_lrps: self.records("SELECT process_guid, record FROM desired_lrps").await?,
            actual_lrps: self
                .records("SELECT CONCAT(process_guid, '/', instance_index, '/', presence), record FROM actual_lrps")
                .await?,
            tasks: self.records("SELECT guid, record FROM tasks").await?,
            domains: domains
                .into_iter()
                .map(|(domain, at)| Ok((text(domain)?, at)))
                .collect::<Result<_, sqlx::Error>>()?,
        })
    }

    fn refusal(error: &sqlx::Error) -> Refusal {
        match (number_of(error), error) {
            (Some(number), _) if code::PASSING.contains(&number) => Refusal::Unclear,
            (Some(_), _) | (None, sqlx::Error::Encode(_)) => Refusal::Final,
            _ => Refusal::Unclear,
        }
    }

    fn advice(error: &sqlx::Error) -> Option<&'static str> {
        let text = error.to_string().to_lowercase();
        text.contains("rsa").then_some(
            "the user's password is checked by caching_sha2_password or sha256_password, which need TLS here: set \
             sql_ca_cert_file, tls= or sslmode=, or give the user mysql_native_password",
        )
    }

    async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }
}

impl Client {
    async fn steps(&mut self) -> Result<i64, sqlx::Error> {
        self.connection.execute(AssertSqlSafe(Dialect::Mysql.version_table())).await?;
        let done = self.version().await?;
        for (number, step) in (1..).zip(Dialect::Mysql.steps()).skip_while(|(number, _)| *number <= done) {
            for statement in step {
                self.connection.execute(AssertSqlSafe(statement)).await?;
            }
            sqlx::query("INSERT IGNORE INTO schema_version (version) VALUES (?)")
                .bind(number)
                .execute(&mut self.connection)
                .await?;
        }
        self.version().await
    }

    async fn version(&mut self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT CAST(COALESCE(MAX(version), 0) AS SIGNED) FROM schema_version")
            .fetch_one(&mut self.connection)
            .await
    }

    async fn records(&mut self, statement: &'static str) -> Result<Vec<Record>, sqlx::Error> {
        let rows = sqlx::query(statement).fetch_all(&mut self.connection).await?;
        rows.into_iter().map(|row| Ok(Record::new(row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

fn number_of(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

pub fn options(server: &Server) -> Result<MySqlConnectOptions, sqlx::Error> {
    super::check_files(&server.tls)?;
    let options = MySqlConnectOptions::new()
        .username(&server.user)
        .database(&server.database)
        .charset("utf8mb4")
        .disable_statement_logging();
    let options = match &server.host {
        Host::Tcp { name, port } => options.host(name).port(*port),
        Host::Socket(path) => options.socket(path),
    };
    let options = match &server.tls.trust {
        Trust::Off => options.ssl_mode(MySqlSslMode::Disabled),
        Trust::Prefer => options.ssl_mode(MySqlSslMode::Preferred),
        Trust::Any => options.ssl_mode(MySqlSslMode::Required),
        Trust::Verified { ca, host } => {
            let mode = if *host { MySqlSslMode::VerifyIdentity } else { MySqlSslMode::VerifyCa };
            ca.iter().fold(options.ssl_mode(mode), |options, ca| options.ssl_ca(ca))
        }
    };
    let options = server
        .tls
        .identity
        .iter()
        .fold(options, |options, (cert, key)| options.ssl_client_cert(cert).ssl_client_key(key));
    Ok(server.password.iter().fold(options, |options, password| options.password(password)))
}

/// Mostly one; several for a batch that is too large for one packet.
fn texts(epoch: i64, number: i64, batch: &Batch) -> Vec<String> {
    let mut texts = Vec::new();
    let mut text = format!(
        "START TRANSACTION; UPDATE writer SET commits = {number} + IF(epoch = {epoch}, 0, {}) WHERE id = 1;\n",
        i64::MAX
    );
    for statement in statements(batch) {
        if text.len() + statement.len() > TEXT_BYTES {
            texts.push(std::mem::take(&mut text));
        }
        text.push_str(&statement);
    }
    text.push_str("COMMIT");
    texts.push(text);
    texts
}

/// Each a part of [`TEXT_BYTES`], but for rows that are larger.
fn statements(batch: &Batch) -> Vec<String> {
    let mut statements = Vec::new();
    for (table, Touched { puts, drops }) in batch.iter() {
        put(table, puts, &mut statements);
        statements.extend(drops.iter().map(|key| drop_row(table, key)));
    }
    statements
}

fn put(table: &Table, rows: &[Vec<Value>], statements: &mut Vec<String>) {
    let set: Vec<String> =
        table.rest.iter().map(|column| format!("{0} = VALUES({0})", column.name)).collect();
    let begin = format!("INSERT INTO {} ({}) VALUES ", table.name, Table::names(table.columns()));
    let end = format!(" ON DUPLICATE KEY UPDATE {};\n", set.join(", "));
    let mut text = String::new();
    for row in rows {
        text.push_str(if text.is_empty() { &begin } else { "," });
        for (at, value) in row.iter().enumerate() {
            text.push(if at == 0 { '(' } else { ',' });
            literal(value, &mut text);
        }
        text.push(')');
        if text.len() > TEXT_BYTES / 4 {
            text.push_str(&end);
            statements.push(std::mem::take(&mut text));
        }
    }
    if !text.is_empty() {
        text.push_str(&end);
        statements.push(text);
    }
}

/// One at a time: not every version looks up tuples by index.
fn drop_row(table: &Table, key: &[Value]) -> String {
    let mut text = format!("DELETE FROM {} WHERE ", table.name);
    for (at, (column, value)) in table.key.iter().zip(key).enumerate() {
        text.push_str(if at == 0 { "" } else { " AND " });
        let _ = write!(text, "{} = ", column.name);
        literal(value, &mut text);
    }
    text.push_str(";\n");
    text
}

fn literal(value: &Value, text: &mut String) {
    // Writing to a text cannot fail.
    let _ = match value {
        Value::Text(value) => {
            text.push_str("_utf8mb4 ");
            return hex(value.as_bytes(), text);
        }
        Value::Bytes(value) => return hex(value, text),
        Value::Int(value) => write!(text, "{value}"),
        Value::BigInt(value) => write!(text, "{value}"),
    };
}

fn hex(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.reserve(bytes.len() * 2 + 3);
    text.push_str("x'");
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text.push('\'');
}

#[cfg(test)]
mod tests {
    use super::super::Write;
    use super::*;

    #[test]
    fn nothing_that_is_written_can_end_its_literal() {
        let mut text = String::new();
        literal(&Value::Text("a'; DROP".into()), &mut text);
        literal(&Value::Bytes(vec![0, 255]), &mut text);
        literal(&Value::BigInt(-1), &mut text);
        assert_eq!(text, "_utf8mb4 x'61273b2044524f50'x'00ff'-1");
    }

    #[test]
    fn a_large_batch_is_several_texts_that_begin_and_end_once() {
        let put = |number: usize| Write::PutDesiredLrp {
            process_guid: format!("p{number}"),
            domain: "d".into(),
            record: vec![7; 100_000],
        };
        let texts = texts(1, 2, &Batch::of((0..20).map(put).collect()));
        assert!(texts.len() > 3, "{}", texts.len());
        assert!(texts.iter().all(|text| text.len() <= TEXT_BYTES), "no text is larger than it may be");
        let all = texts.concat();
        assert_eq!(all.matches("START TRANSACTION").count(), 1);
        assert_eq!(all.matches("COMMIT").count(), 1);
        assert!(all.ends_with("COMMIT"));
        assert_eq!(all.matches("x'70").count(), 20);
    }
}
