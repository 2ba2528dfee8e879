//! The BBS's error on the wire.

use prost::Message;

use crate as models;

#[derive(Clone, PartialEq, Message)]
pub struct Error {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

impl From<Error> for models::Error {
    fn from(wire: Error) -> Self {
        Self { kind: models::ErrorKind::from_number(wire.kind), message: wire.message }
    }
}

impl From<models::Error> for Error {
    fn from(error: models::Error) -> Self {
        Self { kind: error.kind as i32, message: error.message }
    }
}
