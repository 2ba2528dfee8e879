//! What the rep asks of the containers of its cell: of the [`Executor`]'s, or, where a whole cluster is simulated, of
//! containers that take time and fail and do nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use executor::{
    AllocationFailure, AllocationRequest, CellResources, Container, Error, Events, Executor, Reader,
    RunRequest, UpdateRequest,
};

/// As the methods of [`Executor`] of the same names say.
#[async_trait]
pub trait Containers: Send + Sync {
    fn allocate(&self, requests: Vec<AllocationRequest>) -> Vec<AllocationFailure>;
    fn run_container(&self, request: RunRequest) -> Result<(), Error>;
    async fn update(&self, request: UpdateRequest) -> Result<(), Error>;
    async fn stop(&self, guid: &str) -> Result<(), Error>;
    async fn delete(&self, guid: &str) -> Result<(), Error>;
    fn get(&self, guid: &str) -> Result<Container, Error>;
    fn list(&self) -> Vec<Container>;
    fn guids(&self) -> Vec<String>;
    fn remaining_resources(&self) -> CellResources;
    fn total_resources(&self) -> CellResources;
    fn subscribe(&self) -> Events;
    async fn files(&self, guid: &str, path: &str) -> Result<Reader, Error>;
    fn volume_drivers(&self) -> Vec<String>;
    fn healthy(&self) -> bool;
    fn announce(&self, guid: &str, text: &str);
    fn empty_at_stop(&self);
}

#[async_trait]
impl Containers for Executor {
    fn allocate(&self, requests: Vec<AllocationRequest>) -> Vec<AllocationFailure> {
        Executor::allocate(self, requests)
    }

    fn run_container(&self, request: RunRequest) -> Result<(), Error> {
        Executor::run_container(self, request)
    }

    async fn update(&self, request: UpdateRequest) -> Result<(), Error> {
        Executor::update(self, request).await
    }

    async fn stop(&self, guid: &str) -> Result<(), Error> {
        Executor::stop(self, guid).await
    }

    async fn delete(&self, guid: &str) -> Result<(), Error> {
        Executor::delete(self, guid).await
    }

    fn get(&self, guid: &str) -> Result<Container, Error> {
        Executor::get(self, guid)
    }

    fn list(&self) -> Vec<Container> {
        Executor::list(self)
    }

    fn guids(&self) -> Vec<String> {
        Executor::guids(self)
    }

    fn remaining_resources(&self) -> CellResources {
        Executor::remaining_resources(self)
    }

    fn total_resources(&self) -> CellResources {
        Executor::total_resources(self)
    }

    fn subscribe(&self) -> Events {
        Executor::subscribe(self)
    }

    async fn files(&self, guid: &str, path: &str) -> Result<Reader, Error> {
        Executor::files(self, guid, path).await
    }

    fn volume_drivers(&self) -> Vec<String> {
        Executor::volume_drivers(self)
    }

    fn healthy(&self) -> bool {
        Executor::healthy(self)
    }

    fn announce(&self, guid: &str, text: &str) {
        Executor::announce(self, guid, text);
    }

    fn empty_at_stop(&self) {
        Executor::empty_at_stop(self);
    }
}

pub type SharedContainers = Arc<dyn Containers>;
