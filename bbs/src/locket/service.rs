//! The gRPC service `models.Locket`: four unary calls, their errors with the codes and texts that clients know.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::post;
use bbs_models::Resource;
use bbs_models::wire::{
    FETCH_ALL_PATH, FETCH_PATH, FetchAllRequest, FetchAllResponse, FetchRequest, FetchResponse, LOCK_PATH,
    LockRequest, LocketDone, LocketResource, RELEASE_PATH, ReleaseRequest, lock_kind,
};
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use super::witness::UnderWay;
use super::{Call, Locket, Refusal};

/// By which its owner knows a request.
const UUID: &str = "uuid";

pub fn router(locket: Locket) -> Router {
    Router::new()
        .route(LOCK_PATH, post(lock))
        .route(FETCH_PATH, post(fetch))
        .route(RELEASE_PATH, post(release))
        .route(FETCH_ALL_PATH, post(fetch_all))
        .fallback(|| async { Status::unimplemented("Locket has no such call").into_http::<Body>() })
        .with_state(locket)
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Collision => Self::already_exists(text),
            Refusal::InvalidTtl | Refusal::InvalidOwner | Refusal::TooLong { .. } => {
                Self::invalid_argument(text)
            }
            // Not found, for a type that is none: so clients know it.
            Refusal::InvalidType | Refusal::NotFound => Self::not_found(text),
            Refusal::Full => Self::resource_exhausted(text),
            Refusal::Store(_) => Self::unavailable(text),
        }
    }
}

async fn lock(State(locket): State<Locket>, request: Request) -> http::Response<Body> {
    let uuid = request.headers().get(UUID).and_then(|uuid| uuid.to_str().ok()).map(str::to_owned);
    unary(Call::Lock, locket, request, |locket, request: LockRequest| async move {
        let resource = request.resource.and_then(LocketResource::parse).ok_or(Refusal::InvalidType)?;
        let ttl = u64::try_from(request.ttl_in_seconds).map_err(|_| Refusal::InvalidTtl)?;
        locket.lock_as(resource, Duration::from_secs(ttl), uuid).await?;
        Ok(LocketDone {})
    })
    .await
}

async fn release(State(locket): State<Locket>, request: Request) -> http::Response<Body> {
    unary(Call::Release, locket, request, |locket, request: ReleaseRequest| async move {
        let resource = request.resource.ok_or(Refusal::NotFound)?;
        locket.release(&resource.key, &resource.owner).await?;
        Ok(LocketDone {})
    })
    .await
}

async fn fetch(State(locket): State<Locket>, request: Request) -> http::Response<Body> {
    unary(Call::Fetch, locket, request, |locket, request: FetchRequest| async move {
        let resource: Resource = locket.fetch(&request.key).await?;
        Ok(FetchResponse { resource: Some(resource.into()) })
    })
    .await
}

async fn fetch_all(State(locket): State<Locket>, request: Request) -> http::Response<Body> {
    unary(Call::FetchAll, locket, request, |locket, request: FetchAllRequest| async move {
        let kind = lock_kind(request.type_code).ok_or(Refusal::InvalidType)?;
        let found = locket.fetch_all(kind).await?;
        Ok(FetchAllResponse { resources: found.into_iter().map(Into::into).collect() })
    })
    .await
}

async fn unary<Q, A, F, Fut>(call: Call, locket: Locket, request: Request, work: F) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: FnOnce(Locket, Q) -> Fut,
    Fut: Future<Output = Result<A, Refusal>> + Send + 'static,
{
    let witnessed = |request| {
        let under_way = UnderWay::begin(call, locket.witness.clone());
        under_way.until(work(locket, request))
    };
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Once(Some(witnessed)), request).await
}

/// tonic asks for a service; ours is one closure, called once.
struct Once<F>(Option<F>);

impl<Q, A, F, Fut> UnaryService<Q> for Once<F>
where
    F: FnOnce(Q) -> Fut,
    Fut: Future<Output = Result<A, Refusal>> + Send + 'static,
{
    type Response = A;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let Some(call) = self.0.take() else {
            return Box::pin(async { Err(Status::internal("a call is answered once")) });
        };
        let answer = call(request.into_inner());
        Box::pin(async move { Ok(Response::new(answer.await?)) })
    }
}
