//! A file system that never answers, as one on a network whose server has gone: who needs it waits, and nobody else.

use std::os::fd::OwnedFd;

use rustix::mount::{MountFlags, UnmountFlags};

use super::*;

/// Asks us, and we do not listen.
struct DeadMount {
    path: PathBuf,
    asks: Option<OwnedFd>,
}

impl DeadMount {
    fn new(path: PathBuf) -> std::io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        let asks = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        std::fs::create_dir(&path)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&asks);
        let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0");
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount("dead", &path, "fuse", MountFlags::empty(), options.as_c_str())?;
        Ok(Self { path, asks: Some(asks) })
    }

    /// Everybody who waits is told that it is broken.
    fn break_off(&mut self) {
        self.asks = None;
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        self.break_off();
        rustix::mount::unmount(&self.path, UnmountFlags::DETACH).unwrap();
    }
}

fn bound(handle: &str, mount: &DeadMount) -> ContainerSpec {
    let source = mount.path.join("volume").display().to_string();
    let volume = BindMount { src_path: source, dst_path: "/volume".into(), ..BindMount::default() };
    ContainerSpec { bind_mounts: vec![volume], ..named(handle) }
}

#[test]
fn a_volume_that_does_not_answer_holds_up_nobody_else_and_leaves_nothing() {
    let name = "a_volume_that_does_not_answer_holds_up_nobody_else_and_leaves_nothing";
    let impatient = |config: &mut Config, _: &Path| config.step_deadline = Duration::from_secs(2);
    in_a_world_of(name, impatient, async |world| {
        let mut mount = match DeadMount::new(world.directory.path().join("dead")) {
            Ok(mount) => mount,
            Err(error) => {
                println!("SKIPPED {name}: cannot mount a file system of our own: {error}");
                return world;
            }
        };
        // More than the runtime has threads.
        let stuck = ["a", "b", "c"].map(|handle| {
            let (gardener, spec) = (world.gardener.clone(), bound(handle, &mount));
            tokio::spawn(async move { gardener.create(spec).await })
        });
        let healthy = world.create(named("healthy")).await;
        assert_eq!(world.sh(&healthy, "echo fine").await, (0, "fine\n".into()));
        assert!(stuck.iter().all(|create| !create.is_finished()));
        for (create, handle) in stuck.into_iter().zip(["a", "b", "c"]) {
            let error = create.await.unwrap().unwrap_err().to_string();
            let expected = format!("cannot start pid 1 of container '{handle}' in 2s");
            assert!(error.starts_with(&expected), "{error}");
            let error = world.gardener.destroy(handle).await.unwrap_err().to_string();
            assert!(error.ends_with("is being created"), "{error}");
        }
        world.gardener.destroy(&healthy).await.unwrap();
        mount.break_off();
        eventually("those that were stuck are gone", async || {
            world.gardener.all_entries().is_empty().then_some(())
        })
        .await;
        world
    });
}
