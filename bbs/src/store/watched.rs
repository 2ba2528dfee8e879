//! Rows of which somebody measures how fast they come and go.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use super::{Contents, Error, Rows, Write};
use crate::witness::Witness;

pub struct Watched {
    rows: Box<dyn Rows>,
    witness: Arc<dyn Witness>,
}

impl Watched {
    pub fn new(rows: Box<dyn Rows>, witness: Arc<dyn Witness>) -> Watched {
        Watched { rows, witness }
    }

    fn told<T>(&self, begun: Instant, done: Result<T, Error>) -> Result<T, Error> {
        self.witness.asked_database(begun.elapsed(), done.is_ok());
        done
    }
}

#[async_trait]
impl Rows for Watched {
    fn at(&self) -> String {
        self.rows.at()
    }

    async fn load(&mut self) -> Result<Contents, Error> {
        let begun = Instant::now();
        let done = self.rows.load().await;
        self.told(begun, done)
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        let begun = Instant::now();
        let done = self.rows.commit(writes).await;
        self.told(begun, done)
    }

    fn may_be_away(&self) -> bool {
        self.rows.may_be_away()
    }

    async fn check(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let done = self.rows.check().await;
        self.told(begun, done)
    }

    async fn resume(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let done = self.rows.resume().await;
        self.told(begun, done)
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        self.rows.close().await
    }
}
