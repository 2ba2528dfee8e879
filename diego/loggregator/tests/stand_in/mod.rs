//! A forwarder that reads envelopes with messages written down from the published ones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::post;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio_util::sync::CancellationToken;
use tonic::server::{ClientStreamingService, Grpc};
use tonic::{Response, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(message, repeated, tag = "1")]
    batch: Vec<Envelope>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(int64, tag = "1")]
    pub timestamp: i64,
    #[prost(string, tag = "2")]
    pub source_id: String,
    #[prost(string, tag = "8")]
    pub instance_id: String,
    #[prost(btree_map = "string, string", tag = "9")]
    pub tags: BTreeMap<String, String>,
    #[prost(oneof = "Said", tags = "4, 5, 6, 7")]
    pub said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Said {
    #[prost(message, tag = "4")]
    Log(Log),
    #[prost(message, tag = "5")]
    Counter(Counter),
    #[prost(message, tag = "6")]
    Gauge(Gauge),
    #[prost(message, tag = "7")]
    Timer(Timer),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Log {
    #[prost(bytes = "vec", tag = "1")]
    pub payload: Vec<u8>,
    #[prost(int32, tag = "2")]
    pub stream: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Counter {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub delta: u64,
    #[prost(uint64, tag = "3")]
    pub total: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Gauge {
    #[prost(btree_map = "string, message", tag = "1")]
    pub metrics: BTreeMap<String, Measure>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Measure {
    #[prost(string, tag = "1")]
    pub unit: String,
    #[prost(double, tag = "2")]
    pub value: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Timer {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub start: i64,
    #[prost(int64, tag = "3")]
    pub stop: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {}

/// What was received, batch by batch.
#[derive(Clone, Default)]
pub struct Received(pub Arc<Mutex<Vec<Vec<Envelope>>>>);

impl Received {
    pub fn all(&self) -> Vec<Envelope> {
        self.0.lock().unwrap().concat()
    }
}

impl ClientStreamingService<Batch> for Received {
    type Response = Done;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Done>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Batch>>) -> Self::Future {
        let received = self.clone();
        Box::pin(async move {
            let mut batches = request.into_inner();
            while let Some(batch) = batches.message().await? {
                received.0.lock().unwrap().push(batch.batch);
            }
            Ok(Response::new(Done {}))
        })
    }
}

async fn batch_sender(
    State(received): State<Received>,
    request: Request,
) -> axum::http::Response<tonic::body::Body> {
    Grpc::new(ProstCodec::<Done, Batch>::default()).client_streaming(received, request).await
}

pub async fn stand_in(
    address: SocketAddr,
    tls: Option<ServerTls>,
) -> (SocketAddr, Received, CancellationToken) {
    let received = Received::default();
    let router = Router::new()
        .route("/loggregator.v2.Ingress/BatchSender", post(batch_sender))
        .with_state(received.clone());
    let stop = CancellationToken::new();
    let listener = Listener::bind(Listen::Tcp(address)).await.unwrap();
    let address = listener.tcp_address().unwrap();
    tokio::spawn(serve(listener, router, tls, stop.clone()));
    (address, received, stop)
}
