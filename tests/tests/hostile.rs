//! A hostile app harms itself: the cell answers, other work is done, nothing is left.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::{Machine, Registry, World, busybox_image, diego};

/// For any answer of a cell in trouble; in peace it takes a fraction of a second.
const ANSWER_TIME: Duration = Duration::from_secs(10);

#[test]
fn floods_of_output_do_not_silence_the_cell() {
    let Some(machine) = Machine::claim("floods_of_output_do_not_silence_the_cell") else { return };
    let world = World::start();
    let registry = Registry::serving(busybox_image(&["/bin/sh"]), None);
    let image = registry.image();
    let flood = ["task", &image, "--wait", "30", "--", "/bin/sh", "-c", "busybox yes & busybox yes"];
    let mut floods: Vec<_> = (0..3)
        .map(|_| {
            let mut flood_task = diego(&world.state());
            flood_task.args(flood).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    world.until("three floods run", Duration::from_secs(20), |world| {
        world.diego(&["cells"]).worked().stdout.contains("247 of 250")
    });
    let asked = Instant::now();
    world.diego(&["cells"]).worked();
    let quick = world.diego(&["task", &image, "--", "/bin/echo", "a quick word"]).worked();
    assert!(asked.elapsed() < ANSWER_TIME, "{:?}", asked.elapsed());
    assert!(quick.stderr.contains("a quick word"), "{quick:?}");
    for flood in &mut floods {
        flood.kill().unwrap();
        flood.wait().unwrap();
    }
    drop(world);
    machine.has_nothing_left();
}
