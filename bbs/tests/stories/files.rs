//! Stories about files that cannot be used.

use std::time::Duration;

use bbs::Location;
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

use crate::world::{World, lrp};

async fn refusal(world: &World, database: &Location) -> String {
    let (listen, _) = Listen::loopback().unwrap();
    let run = bbs::run(world.config(listen, database), CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(20), run).await.expect("refused in time");
    ended.expect_err("refused").to_string()
}

#[tokio::test]
async fn a_second_bbs_on_the_same_file_is_refused() {
    let world = World::new().await;
    let expected = format!("{} is in use by another process", world.database());
    assert_eq!(refusal(&world, world.database()).await, expected);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.txt");
    std::fs::write(&path, "milk, eggs, bread\n".repeat(1000)).unwrap();
    let refused = refusal(&world, &path.as_path().into()).await;
    assert!(refused.starts_with(&format!("the database file {} is corrupt", path.display())), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "milk, eggs, bread\n".repeat(1000));
}
