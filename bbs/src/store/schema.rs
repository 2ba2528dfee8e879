//! The tables, as steps that only go forward. Step N brings a file from version N-1 to version N.
//!
//! Types and statements keep to what SQLite, PostgreSQL and MySQL share, so that the others can have the same steps.

/// The version that a file has after all steps.
pub const VERSION: i64 = STEPS.len() as i64;

pub const VERSION_TABLE: &str =
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY)";

pub const STEPS: &[&[&str]] = &[&[
    "CREATE TABLE desired_lrps (
        process_guid VARCHAR(255) NOT NULL PRIMARY KEY,
        domain       VARCHAR(255) NOT NULL,
        record       BLOB         NOT NULL
    )",
    "CREATE TABLE actual_lrps (
        process_guid   VARCHAR(255) NOT NULL,
        instance_index INT          NOT NULL,
        presence       INT          NOT NULL,
        domain         VARCHAR(255) NOT NULL,
        state          VARCHAR(255) NOT NULL,
        cell_id        VARCHAR(255) NOT NULL,
        record         BLOB         NOT NULL,
        PRIMARY KEY (process_guid, instance_index, presence)
    )",
    "CREATE TABLE tasks (
        guid    VARCHAR(255) NOT NULL PRIMARY KEY,
        domain  VARCHAR(255) NOT NULL,
        state   VARCHAR(255) NOT NULL,
        cell_id VARCHAR(255) NOT NULL,
        record  BLOB         NOT NULL
    )",
    "CREATE TABLE domains (
        domain      VARCHAR(255) NOT NULL PRIMARY KEY,
        expire_time BIGINT       NOT NULL
    )",
]];
