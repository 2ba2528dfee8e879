//! PostgreSQL: a commit is one statement and one round trip.
//!
//! All rows of a table travel as one array a column. The row of `writer` is changed first, in the same statement, and
//! all else is joined to that: where it finds no row of our epoch, nothing is written at all.

use std::fmt::Write as _;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgSslMode};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Postgres, Row};

use super::batch::{Batch, Column, Kind, Table, Touched, Value};
use super::fence::{Held, Refusal, Session};
use super::location::{Host, Server, Trust};
use super::schema::Dialect;
use super::{Contents, Record};

/// Any number that other programs on the same server do not take for theirs.
const MIGRATION_LOCK: i64 = 0x0064_6965_676f;

/// Of the connection that writes: a statement that the server cannot finish in time is given up there, too, and keys
/// are looked up by index even before the server has counted a table's rows.
const SESSION: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; SET synchronous_commit = on;
     SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
     SET enable_mergejoin = off; SET enable_bitmapscan = off";
/// Servers before 14 do not know it: the statement of a client that is gone is not carried on.
const NOTICE_GONE_CLIENTS: &str = "SET client_connection_check_interval = '1s'";

pub struct Client(PgConnection);

impl Session for Client {
    type Server = Server;

    async fn connect(server: &Server) -> Result<Client, sqlx::Error> {
        let mut connection = options(server)?.connect().await?;
        connection.execute(SESSION).await?;
        // An error outside of a transaction leaves no trace.
        let _ = connection.execute(NOTICE_GONE_CLIENTS).await;
        Ok(Client(connection))
    }

    /// Each step in a transaction with its number. The lock is the transaction's: two that start together take turns.
    async fn migrate(&mut self) -> Result<i64, sqlx::Error> {
        let connection = &mut self.0;
        let mut transaction = connection.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await?;
        transaction.execute(AssertSqlSafe(Dialect::Postgres.version_table())).await?;
        let done = version(&mut transaction).await?;
        transaction.commit().await?;
        for (number, step) in (1..).zip(Dialect::Postgres.steps()).skip_while(|(number, _)| *number <= done) {
            let mut transaction = connection.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(MIGRATION_LOCK)
                .execute(&mut *transaction)
                .await?;
            if version(&mut transaction).await? >= number {
                continue;
            }
            for statement in step {
                transaction.execute(AssertSqlSafe(statement)).await?;
            }
            sqlx::query("INSERT INTO schema_version (version) VALUES ($1)")
                .bind(number)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
        version(connection).await
    }

    async fn holder(&mut self) -> Result<Option<Held>, sqlx::Error> {
        let row = self.0.fetch_optional("SELECT owner, epoch, commits FROM writer WHERE id = 1").await?;
        row.map(|row| Ok(Held { owner: row.try_get(0)?, epoch: row.try_get(1)?, commits: row.try_get(2)? }))
            .transpose()
    }

    async fn raise(&mut self, owner: &str, from: Option<i64>) -> Result<bool, sqlx::Error> {
        let query = match from {
            None => sqlx::query(
                "INSERT INTO writer (id, owner, epoch, commits) VALUES (1, $1, 1, 0) ON CONFLICT DO NOTHING",
            )
            .bind(owner),
            Some(from) => {
                sqlx::query("UPDATE writer SET owner = $1, epoch = epoch + 1 WHERE id = 1 AND epoch = $2")
                    .bind(owner)
                    .bind(from)
            }
        };
        Ok(query.execute(&mut self.0).await?.rows_affected() == 1)
    }

    async fn commit(&mut self, epoch: i64, number: i64, batch: &Batch) -> Result<bool, sqlx::Error> {
        let (statement, arms) = statement(batch);
        let mut query = sqlx::query(AssertSqlSafe(statement)).bind(epoch).bind(number);
        for (columns, rows) in arms {
            query = bind(query, columns, rows);
        }
        let written: i64 = query.fetch_one(&mut self.0).await?.try_get(0)?;
        Ok(written == 1)
    }

    async fn load(&mut self) -> Result<Contents, sqlx::Error> {
        self.0.execute("SET enable_seqscan = on; SET statement_timeout = 0").await?;
        let contents = Contents {
            desired_lrps: self.records("SELECT process_guid, record FROM desired_lrps").await?,
            actual_lrps: self
                .records("SELECT process_guid || '/' || instance_index || '/' || presence, record FROM actual_lrps")
                .await?,
            tasks: self.records("SELECT guid, record FROM tasks").await?,
            domains: sqlx::query_as("SELECT domain, expire_time FROM domains").fetch_all(&mut self.0).await?,
        };
        self.0.execute(SESSION).await?;
        Ok(contents)
    }

    fn refusal(error: &sqlx::Error) -> Refusal {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            // Conflicts with others, a server that stops or that only reads: all of them pass.
            Some(code) if ["40", "57", "08", "25"].iter().any(|class| code.starts_with(class)) => {
                Refusal::Unclear
            }
            Some("55P03") => Refusal::Unclear,
            Some(_) => Refusal::Final,
            None => Refusal::Unclear,
        }
    }

    async fn close(self) -> Result<(), sqlx::Error> {
        self.0.close().await
    }
}

impl Client {
    async fn records(&mut self, statement: &'static str) -> Result<Vec<Record>, sqlx::Error> {
        let rows = sqlx::query(statement).fetch_all(&mut self.0).await?;
        rows.into_iter().map(|row| Ok(Record::new(row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

async fn version(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM schema_version");
    query.fetch_one(connection).await
}

pub fn options(server: &Server) -> Result<PgConnectOptions, sqlx::Error> {
    super::check_files(&server.tls)?;
    let options = PgConnectOptions::new_without_pgpass()
        .username(&server.user)
        .database(&server.database)
        .application_name("diego")
        .disable_statement_logging();
    let options = match &server.host {
        Host::Tcp { name, port } => options.host(name).port(*port),
        Host::Socket(directory) => options.socket(directory),
    };
    let options = match &server.tls.trust {
        Trust::Off => options.ssl_mode(PgSslMode::Disable),
        Trust::Prefer => options.ssl_mode(PgSslMode::Prefer),
        Trust::Any => options.ssl_mode(PgSslMode::Require),
        Trust::Verified { ca, host } => {
            let mode = if *host { PgSslMode::VerifyFull } else { PgSslMode::VerifyCa };
            let options = options.ssl_mode(mode);
            ca.iter().fold(options, |options, ca| options.ssl_root_cert(ca))
        }
    };
    let options = server
        .tls
        .identity
        .iter()
        .fold(options, |options, (cert, key)| options.ssl_client_cert(cert).ssl_client_key(key));
    Ok(server.password.iter().fold(options, |options, password| options.password(password)))
}

/// The statement, and what its arrays are made of, in their order.
fn statement(batch: &Batch) -> (String, Vec<(Vec<&'static Column>, &Vec<Vec<Value>>)>) {
    let mut sql = String::from(
        "WITH fence AS (UPDATE writer SET commits = $2 WHERE id = 1 AND epoch = $1 RETURNING id)",
    );
    let mut arms = Vec::new();
    let mut next = 3;
    for (table, Touched { puts, drops }) in batch.iter() {
        if !puts.is_empty() {
            put_arm(&mut sql, table, next);
            next += table.columns().count();
            arms.push((table.columns().collect(), puts));
        }
        if !drops.is_empty() {
            drop_arm(&mut sql, table, next);
            next += table.key.len();
            arms.push((table.key.iter().collect(), drops));
        }
    }
    sql.push_str(" SELECT count(*) FROM fence");
    (sql, arms)
}

fn put_arm(sql: &mut String, table: &Table, first: usize) {
    let (name, all) = (table.name, Table::names(table.columns()));
    let set: Vec<String> =
        table.rest.iter().map(|Column { name, .. }| format!("{name} = excluded.{name}")).collect();
    let (key, set) = (Table::names(table.key.iter()), set.join(", "));
    let arrays = arrays(table.columns(), first);
    // Writing to a text cannot fail.
    let _ = write!(
        sql,
        ", put_{name} AS (INSERT INTO {name} ({all}) SELECT r.* FROM fence, unnest({arrays}) AS r
           ON CONFLICT ({key}) DO UPDATE SET {set})"
    );
}

fn drop_arm(sql: &mut String, table: &Table, first: usize) {
    let (name, key) = (table.name, Table::names(table.key.iter()));
    let same: Vec<String> = table
        .key
        .iter()
        .map(|Column { name: column, .. }| format!("{name}.{column} = gone.{column}"))
        .collect();
    let (arrays, same) = (arrays(table.key.iter(), first), same.join(" AND "));
    let _ = write!(
        sql,
        ", drop_{name} AS (DELETE FROM {name} USING fence, unnest({arrays}) AS gone ({key}) WHERE {same})"
    );
}

/// `$3::text[], $4::int4[]`.
fn arrays<'a>(columns: impl Iterator<Item = &'a Column>, first: usize) -> String {
    let kind = |kind| match kind {
        Kind::Text => "text",
        Kind::Int => "int4",
        Kind::BigInt => "int8",
        Kind::Bytes => "bytea",
    };
    let arrays: Vec<String> = (first..)
        .zip(columns)
        .map(|(number, column)| format!("${number}::{}[]", kind(column.kind)))
        .collect();
    arrays.join(", ")
}

fn bind<'q>(
    mut query: Query<'q, Postgres, PgArguments>,
    columns: Vec<&'static Column>,
    rows: &[Vec<Value>],
) -> Query<'q, Postgres, PgArguments> {
    for (at, column) in columns.into_iter().enumerate() {
        let values = rows.iter().map(|row| &row[at]);
        query = match column.kind {
            Kind::Text => query.bind(values.map(Value::text).collect::<Vec<&str>>()),
            Kind::Int => query.bind(values.map(Value::int).collect::<Vec<i32>>()),
            Kind::BigInt => query.bind(values.map(Value::big_int).collect::<Vec<i64>>()),
            Kind::Bytes => query.bind(values.map(Value::bytes).collect::<Vec<&[u8]>>()),
        };
    }
    query
}
