//! Each thing a person can get wrong, or that can go wrong around them, ends in one clear error at the place where they
//! look, and leaves nothing behind.

use std::io::BufRead;
use std::os::unix::process::CommandExt;

use tests::{Answer, Entry, Fault, Image, Machine, Registry, World, busybox_image, diego};

const SERVE: &[&str] = &["/bin/sh", "-c", "exec httpd -f -p $PORT"];

/// A story told in a world, after which nothing is left.
fn in_a_world(test: &str, story: impl FnOnce(&World)) {
    let Some(machine) = Machine::claim(test) else { return };
    let world = World::start();
    story(&world);
    drop(world);
    machine.has_nothing_left();
}

/// `diego run` of what a faulty registry serves.
fn run_refused(world: &World, fault: Fault, says: &[&str]) {
    let registry = Registry::serving(busybox_image(SERVE), Some(fault));
    world.diego(&["run", &registry.image(), "--name", "bad"]).refused(1, says);
}

#[test]
fn an_image_that_cannot_be_had_is_refused_with_its_reason() {
    in_a_world("an_image_that_cannot_be_had_is_refused_with_its_reason", |world| {
        for (fault, says) in [
            (Fault::Empty, "not found"),
            (Fault::Status(401), "give a username and a password"),
            (Fault::Status(429), "429"),
            (Fault::Status(500), "500"),
            (Fault::CorruptLayer, "digest"),
            (Fault::TruncatedLayer, "sha256:"),
            (Fault::OtherManifest, "was asked for"),
        ] {
            run_refused(world, fault, &["test/image", says]);
        }
        let gone = Registry::serving(busybox_image(SERVE), None).image();
        world.diego(&["run", &gone, "--name", "bad"]).refused(1, &["test/image", "refused"]);
        assert_eq!(world.diego(&["--json", "ps"]).worked().stdout, "", "nothing was desired");
    });
}

#[test]
fn an_image_that_would_write_outside_its_root_is_refused() {
    in_a_world("an_image_that_would_write_outside_its_root_is_refused", |world| {
        let escape = Entry::File("../../tmp/diego-escaped", b"x".to_vec(), 0o644);
        let registry = Registry::serving(Image::of(&[escape], &["/bin/sh"]), None);
        let refused = world.diego(&["run", &registry.image(), "--name", "bad", "--wait", "30"]);
        refused.refused(1, &["../../tmp/diego-escaped"]);
        assert!(!std::path::Path::new("/tmp/diego-escaped").exists());
    });
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    in_a_world("a_command_that_does_not_exist_is_named", |world| {
        let registry = Registry::serving(busybox_image(&["/no/such/program"]), None);
        let image = registry.image();
        world.diego(&["run", &image, "--name", "bad", "--wait", "30"]).refused(1, &["bad crashed"]);
        let logs = world.diego(&["logs", "bad"]).worked().stdout;
        assert!(logs.contains("/no/such/program"), "{logs}");
        world
            .diego(&["task", &image, "--", "/no/such/either"])
            .refused(1, &["task failed", "/no/such/either"]);
    });
}

#[test]
fn an_app_that_never_listens_crashes_with_its_check() {
    in_a_world("an_app_that_never_listens_crashes_with_its_check", |world| {
        let registry = Registry::serving(busybox_image(&["/bin/sh", "-c", "exit 3"]), None);
        let refused = world.diego(&["run", &registry.image(), "--name", "bad", "--wait", "30"]);
        refused.refused(1, &["bad crashed", "Exited with status 3"]);
        let listed = world.diego(&["ps", "bad"]).worked().stdout;
        assert!(listed.contains("Exited with status 3"), "{listed}");
    });
}

#[test]
fn what_takes_more_memory_than_it_may_is_told_how_much_that_was() {
    in_a_world("what_takes_more_memory_than_it_may_is_told_how_much_that_was", |world| {
        let registry = Registry::serving(busybox_image(&["/bin/sh"]), None);
        // One line without an end, which tail keeps whole.
        let hog = ["task", &registry.image(), "-m", "32", "--", "/bin/sh", "-c", "exec tail -n 1 /dev/zero"];
        let why = "Exited with status 137 (out of memory): SIGKILL, memory peak 3";
        world.diego(&hog).refused(1, &["task failed", why, "of a limit of 32M"]);
        // Who ends by a signal otherwise is told which, and nothing of memory.
        let faulty = ["task", &registry.image(), "--", "/bin/sh", "-c", "kill -SEGV $$"];
        world.diego(&faulty).refused(1, &["task failed", "Exited with status 139: SIGSEGV"]);
    });
}

#[test]
fn more_memory_than_a_cell_has_is_a_placement_error() {
    in_a_world("more_memory_than_a_cell_has_is_a_placement_error", |world| {
        let registry = Registry::serving(busybox_image(SERVE), None);
        let refused =
            world.diego(&["run", &registry.image(), "--name", "bad", "-m", "100000000", "--wait", "5"]);
        refused.refused(1, &["insufficient resources: memory"]);
    });
}

#[test]
fn what_does_not_exist_has_an_exit_code_of_its_own() {
    in_a_world("what_does_not_exist_has_an_exit_code_of_its_own", |world| {
        for command in [
            &["delete", "nothing"][..],
            &["scale", "nothing", "2"],
            &["logs", "nothing"],
            &["ssh", "nothing"],
        ] {
            world.diego(command).refused(4, &["there is no app nothing"]);
        }
    });
}

#[test]
fn a_killed_diego_comes_back_with_all_that_ran() {
    let Some(machine) = Machine::claim("a_killed_diego_comes_back_with_all_that_ran") else { return };
    let registry = Registry::serving(busybox_image(SERVE), None);
    let mut world = World::start();
    world.diego(&["run", &registry.image(), "--name", "web", "-i", "2"]).worked();
    let instances = |world: &World| world.diego(&["--json", "ps", "web"]).worked().stdout;
    let before = instances(&world);
    assert_eq!(before.matches("\"state\":\"RUNNING\"").count(), 2, "{before}");
    world.kill_and_start_again();
    assert_eq!(instances(&world), before, "the same two, at the same ports, since the same moment");
    world.diego(&["delete", "web"]).worked();
    drop(world);
    machine.has_nothing_left();
}

/// `diego dev` in a state directory, expected to end by itself.
fn dev_refused(state: &std::path::Path, flags: &[&str], says: &[&str]) {
    Answer::of(diego(state).arg("dev").args(flags)).refused(1, says);
}

#[test]
fn a_machine_that_cannot_run_it_is_told_why() {
    let Some(machine) = Machine::claim("a_machine_that_cannot_run_it_is_told_why") else { return };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    dev_refused(&state, &["--router", &taken], &["cannot listen on", &taken, "--router"]);
    dev_refused(
        "/proc/nowhere".as_ref(),
        &["--any-port"],
        &["cannot use /proc/nowhere as the state directory"],
    );

    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("bbs.sqlite"), vec![b'x'; 8192]).unwrap();
    dev_refused(&state, &["--any-port"], &["bbs.sqlite"]);
    std::fs::remove_file(state.join("bbs.sqlite")).unwrap();

    let as_nobody =
        Answer::of(diego(&dir.path().join("other")).args(["dev", "--any-port"]).uid(65534).gid(65534));
    as_nobody.refused(1, &["root"]);

    // A machine without cgroups: the rest of the machine does not see this mount.
    let program = diego(&state).get_program().to_owned();
    let script = r#"mount -t tmpfs none /sys/fs/cgroup && exec "$0" dev --any-port"#;
    let mut without = std::process::Command::new("unshare");
    without
        .args(["-m", "--propagation", "private", "sh", "-c", script])
        .arg(program)
        .env("DIEGO_STATE", &state);
    Answer::of(&mut without).refused(1, &["cgroup"]);
    machine.has_nothing_left();
}

#[test]
fn a_state_directory_serves_one_diego_at_a_time() {
    in_a_world("a_state_directory_serves_one_diego_at_a_time", |world| {
        dev_refused(&world.state(), &["--any-port"], &["another diego runs with the state directory"]);
    });
}

#[test]
fn a_database_that_another_bbs_holds_is_named() {
    let Some(machine) = Machine::claim("a_database_that_another_bbs_holds_is_named") else { return };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let mut bbs = diego(&state)
        .args(["bbs", "--listen", "127.0.0.1:0", "--locket-listen", "127.0.0.1:0"])
        .arg("--database")
        .arg(state.join("bbs.sqlite"))
        .arg("--locket-database")
        .arg(state.join("locket.sqlite"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(bbs.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("bbs.started")), "the BBS did not start");
    dev_refused(&state, &["--any-port", "--slot", "1"], &["bbs.sqlite"]);
    rustix::process::kill_process(rustix::process::Pid::from_child(&bbs), rustix::process::Signal::TERM)
        .unwrap();
    bbs.wait().unwrap();
    machine.has_nothing_left();
}
