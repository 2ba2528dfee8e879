//! The tables, as steps that only go forward. Step N brings a database from version N-1 to version N.
//!
//! One text for all three databases, with words in braces for what they call by different names. MySQL commits each
//! statement at once: a step that was killed half-way is done again, so every statement may meet what it makes.

/// The version that a database has after all steps.
pub const VERSION: i64 = STEPS.len() as i64;

const VERSION_TABLE: &str =
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY){table}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Sqlite,
    Postgres,
    Mysql,
}

impl Dialect {
    pub fn version_table(self) -> String {
        self.say(VERSION_TABLE)
    }

    /// The statements of each step, the first one first.
    pub fn steps(self) -> impl Iterator<Item = Vec<String>> {
        STEPS.iter().map(move |step| step.iter().map(|statement| self.say(statement)).collect())
    }

    pub fn say(self, statement: &str) -> String {
        let (bytes, exact, table) = match self {
            Dialect::Sqlite => ("BLOB", "VARCHAR(255)", ""),
            Dialect::Postgres => ("BYTEA", "VARCHAR(255)", ""),
            // A BLOB ends at 64 KiB there, texts are the same in capitals unless told otherwise, and what ends in
            // spaces is the same without them unless it is bytes.
            Dialect::Mysql => ("LONGBLOB", "VARBINARY(1020)", MYSQL_TABLE),
        };
        statement.replace("{bytes}", bytes).replace("{exact}", exact).replace("{table}", table)
    }
}

const MYSQL_TABLE: &str = " ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";

const STEPS: &[&[&str]] = &[
    &[
        "CREATE TABLE IF NOT EXISTS desired_lrps (
            process_guid VARCHAR(255) NOT NULL PRIMARY KEY,
            domain       VARCHAR(255) NOT NULL,
            record       {bytes}      NOT NULL
        ){table}",
        "CREATE TABLE IF NOT EXISTS actual_lrps (
            process_guid   VARCHAR(255) NOT NULL,
            instance_index INT          NOT NULL,
            presence       INT          NOT NULL,
            domain         VARCHAR(255) NOT NULL,
            state          VARCHAR(255) NOT NULL,
            cell_id        VARCHAR(255) NOT NULL,
            record         {bytes}      NOT NULL,
            PRIMARY KEY (process_guid, instance_index, presence)
        ){table}",
        "CREATE TABLE IF NOT EXISTS tasks (
            guid    VARCHAR(255) NOT NULL PRIMARY KEY,
            domain  VARCHAR(255) NOT NULL,
            state   VARCHAR(255) NOT NULL,
            cell_id VARCHAR(255) NOT NULL,
            record  {bytes}      NOT NULL
        ){table}",
        "CREATE TABLE IF NOT EXISTS domains (
            domain      {exact} NOT NULL PRIMARY KEY,
            expire_time BIGINT  NOT NULL
        ){table}",
    ],
    // Who may write: one row. See `fence`.
    &["CREATE TABLE IF NOT EXISTS writer (
        id      INT          NOT NULL PRIMARY KEY,
        owner   VARCHAR(255) NOT NULL,
        epoch   BIGINT       NOT NULL,
        commits BIGINT       NOT NULL
    ){table}"],
];
