//! Calls of the API by their bytes, well made or not, and what is said to them.

use bbs_models::{ErrorKind, wire};
use prost::Message;

use crate::world::World;

pub struct Calls {
    client: reqwest::Client,
    url: String,
}

/// In the place of a refusal.
pub const ACCEPTED: &str = "accepted";
pub const NOT_A_MESSAGE: &str = "InvalidRequest: the request received is invalid";

impl Calls {
    pub fn of(world: &World) -> Calls {
        let client = diego_base::http::client(&Default::default()).unwrap();
        Calls { client, url: world.url().to_string() }
    }

    /// Type and text of the refusal; of every answer the error is field 1.
    pub async fn say(&self, path: &str, body: Vec<u8>) -> String {
        match self.ask::<wire::LifecycleResponse>(path, body).await.error {
            Some(error) => format!("{}: {}", ErrorKind::from_number(error.kind), error.message),
            None => ACCEPTED.into(),
        }
    }

    pub async fn ask<R: Message + Default>(&self, path: &str, body: Vec<u8>) -> R {
        let response = self.client.post(format!("{}{path}", self.url)).body(body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "application/x-protobuf", "{path}");
        R::decode(response.bytes().await.unwrap()).unwrap()
    }
}
