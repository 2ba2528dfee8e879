//! The private registry cache with the clients that people have: skopeo, containerd, Docker, and Debian's registry.

mod common;
#[path = "common/cache.rs"]
mod serving;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::{Tar, image};
use rootfs::registry::cache::Writers;
use rootfs::{Config, ImageRef, Store};
use serde_json::json;
use serving::{Cache, NOBODY, client};

fn built() -> common::BuiltImage {
    let layers = [Tar::default().file("a", &"a".repeat(5000)).bytes(), Tar::default().file("b", "b").bytes()];
    image(&layers, json!({"Entrypoint": ["/a"], "Env": ["X=y"], "User": "me"}))
}

/// Debian's registry, on a port of its own.
struct DockerRegistry {
    child: Child,
    address: String,
}

impl DockerRegistry {
    async fn start(directory: &Path) -> Option<DockerRegistry> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        std::fs::create_dir_all(directory).unwrap();
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            directory.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let registry = DockerRegistry { child, address };
        for _ in 0..1000 {
            if client().get(format!("http://{}/v2/", registry.address)).send().await.is_ok() {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("docker-registry does not answer");
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

/// Runs skopeo, which is to succeed; `None`: it is not installed.
async fn skopeo(scratch: &Path, arguments: &[&str]) -> Option<()> {
    let output = try_skopeo(scratch, arguments).await?;
    assert!(output.status.success(), "{}", said(&output));
    Some(())
}

/// With a trust policy and a home of its own.
async fn try_skopeo(scratch: &Path, arguments: &[&str]) -> Option<Output> {
    let policy = scratch.join("policy.json");
    std::fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    let mut command = tokio::process::Command::new("skopeo");
    command.arg("--policy").arg(policy).args(arguments).env("HOME", scratch).env("TMPDIR", scratch);
    match command.output().await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        output => Some(output.unwrap()),
    }
}

/// Everything of containerd's in a directory of its own.
struct Containerd {
    daemon: tokio::process::Child,
    directory: PathBuf,
}

impl Containerd {
    /// `what` is skipped without it.
    async fn start(scratch: &Path, what: &str) -> Option<Containerd> {
        if !common::is_root() {
            println!("SKIPPED {what} with containerd: needs root");
            return None;
        }
        let directory = scratch.join("containerd");
        let path = |name: &str| directory.join(name).display().to_string();
        std::fs::create_dir_all(&directory).unwrap();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket")
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let mut command = tokio::process::Command::new("containerd");
        command.args(["--config", &path("config.toml")]).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(daemon) = command.kill_on_drop(true).spawn() else {
            println!("SKIPPED {what} with containerd: it is not installed");
            return None;
        };
        let containerd = Containerd { daemon, directory };
        for round in 0.. {
            if containerd.ctr(&["version"]).await.status.success() {
                break;
            }
            assert!(round < 600, "containerd does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(containerd)
    }

    async fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new("ctr");
        command.arg("--address").arg(self.directory.join("socket")).args(arguments).output().await.unwrap()
    }

    async fn stop(mut self) {
        self.daemon.start_kill().unwrap();
        self.daemon.wait().await.unwrap();
    }
}

/// With its registry behind the cache, which is told by `?ns=` whose image is meant.
async fn containerd_pulls(scratch: &Path, registry: &str, mirror: &str, image: &common::BuiltImage) {
    let Some(containerd) = Containerd::start(scratch, "pulling through the mirror").await else { return };
    let hosts = format!(
        "server = \"http://{registry}\"\n[host.\"http://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    let path = containerd.directory.join("hosts");
    std::fs::create_dir_all(path.join(registry)).unwrap();
    std::fs::write(path.join(registry).join("hosts.toml"), hosts).unwrap();
    // Not there: so it is the mirror that has it.
    let name = format!("{registry}/team/app:v1");
    let path = path.display().to_string();
    let fetched = containerd.ctr(&["content", "fetch", "--hosts-dir", &path, &name]).await;
    assert!(fetched.status.success(), "{}", said(&fetched));
    let content = containerd.ctr(&["content", "get", &image.digest.to_string()]).await;
    assert_eq!(content.stdout, image.manifest);
    containerd.stop().await;
}

#[tokio::test]
async fn ordinary_clients_push_pull_and_mirror() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let Some(registry) = DockerRegistry::start(&path("registry")).await else {
        println!("SKIPPED ordinary_clients_push_pull_and_mirror: docker-registry is not installed");
        return;
    };
    let image = built();
    image.write_layout(&path("layout"), "v1");
    let cache = Cache::start(&path("cache"), Duration::from_secs(30));
    let layout = format!("oci:{}:v1", path("layout").display());
    let encoded = registry.address.replace(':', "_");
    let upstream = format!("docker://{}/team/app:v1", registry.address);
    let pushed = skopeo(scratch.path(), &["copy", "--dest-tls-verify=false", &layout, &upstream]).await;
    if pushed.is_none() {
        println!("SKIPPED ordinary_clients_push_pull_and_mirror: skopeo is not installed");
        return cache.stop().await;
    }
    // Pulled through the cache, then pushed into it and pulled back.
    let through = format!("docker://{}/{encoded}/team/app:v1", cache.address);
    let out = format!("oci:{}:v1", path("out").display());
    skopeo(scratch.path(), &["copy", "--src-tls-verify=false", &through, &out]).await.unwrap();
    let ours = format!("docker://{}/mine/app:v2", cache.address);
    skopeo(scratch.path(), &["copy", "--dest-tls-verify=false", &layout, &ours]).await.unwrap();
    let back = format!("oci:{}:v1", path("back").display());
    skopeo(scratch.path(), &["copy", "--src-tls-verify=false", &ours, &back]).await.unwrap();
    for copy in ["out", "back"] {
        let blob = path(copy).join("blobs/sha256").join(image.digest.hex());
        assert_eq!(std::fs::read(blob).unwrap(), image.manifest, "{copy}");
    }
    let (_, resolved) = cache.resolve(&ours, NOBODY).await;
    assert_eq!(resolved.unwrap().image, format!("docker://{}/mine/app@{}", cache.address, image.digest));
    let denied = client().post(format!("http://{}/v2/{encoded}/team/app/blobs/uploads/", cache.address));
    assert_eq!(denied.send().await.unwrap().status().as_u16(), 403);
    if common::is_root() {
        let store = Store::open(&path("store"), Config::default()).unwrap();
        for uri in [&upstream, &through, &ours] {
            let pulled = store.pull(&uri.parse::<ImageRef>().unwrap(), None, &|_| {}).await.unwrap();
            assert_eq!(pulled.digest, image.digest);
        }
    }
    // Clients that are told of the cache as a mirror find images under the registry's own name, here after it is gone.
    let address = registry.address.clone();
    drop(registry);
    let conf = format!(
        "[[registry]]\nlocation = \"{0}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{1}/{encoded}\"\ninsecure = true\n",
        address, cache.address
    );
    std::fs::write(path("registries.conf"), conf).unwrap();
    let mirrored = format!("oci:{}:v1", path("mirrored").display());
    let conf = path("registries.conf").display().to_string();
    skopeo(scratch.path(), &["--registries-conf", &conf, "copy", &upstream, &mirrored]).await.unwrap();
    containerd_pulls(scratch.path(), &address, &cache.address.to_string(), &image).await;
    cache.stop().await;
}

/// Only who has the account may push.
fn guarded(scratch: &Path) -> Writers {
    let accounts = scratch.join("accounts");
    std::fs::write(&accounts, "stager:its secret\n").unwrap();
    Writers::from_networks(Vec::new()).with_accounts(&accounts).unwrap()
}

#[tokio::test]
async fn who_has_an_account_pushes_and_everybody_pulls() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    // One layer, which is compressed as Docker has always understood it.
    let image = image(&[Tar::default().file("a", &"a".repeat(5000)).bytes()], json!({}));
    image.write_layout(&scratch.path().join("layout"), "v1");
    let age = Duration::from_secs(30);
    let cache = Cache::start_with(&scratch.path().join("cache"), age, guarded(scratch.path()));
    let (layout, out) = (format!("oci:{}:v1", path("layout")), format!("oci:{}:v1", path("out")));
    let ours = format!("docker://{}/mine/app:v1", cache.address);
    let push = ["copy", "--dest-tls-verify=false", &layout, &ours];
    let Some(stranger) = try_skopeo(scratch.path(), &push).await else {
        println!("SKIPPED who_has_an_account_pushes_and_everybody_pulls: skopeo is not installed");
        return cache.stop().await;
    };
    assert!(!stranger.status.success() && said(&stranger).contains("unauthorized"), "{}", said(&stranger));
    let host = cache.address.to_string();
    let login = |password| ["login", "--tls-verify=false", "-u", "stager", "-p", password, "--authfile"];
    let auth = path("auth.json");
    let wrong = try_skopeo(scratch.path(), &[&login("guess")[..], &[&auth, &host]].concat()).await.unwrap();
    assert!(!wrong.status.success(), "{}", said(&wrong));
    skopeo(scratch.path(), &[&login("its secret")[..], &[&auth, &host]].concat()).await.unwrap();
    let push = ["copy", "--dest-tls-verify=false", "--authfile", &auth, &layout, &ours];
    skopeo(scratch.path(), &push).await.unwrap();
    skopeo(scratch.path(), &["copy", "--src-tls-verify=false", &ours, &out]).await.unwrap();
    // Deleting and pinning are for the same ones.
    let (denied, manifest) = (&client(), format!("http://{host}/v2/mine/app/manifests/{}", image.digest));
    assert_eq!(denied.delete(&manifest).send().await.unwrap().status(), 401);
    let resolve = denied.post(format!("http://{host}/v1/resolve")).json(&json!({"image": ours}));
    assert_eq!(resolve.try_clone().unwrap().send().await.unwrap().status(), 401);
    let resolved =
        resolve.basic_auth("stager", Some("its secret")).send().await.unwrap().text().await.unwrap();
    assert!(resolved.contains(&image.digest.to_string()), "{resolved}");
    containerd_pushes(scratch.path(), &host).await;
    docker_pushes(scratch.path(), &host).await;
    cache.stop().await;
}

async fn containerd_pushes(scratch: &Path, host: &str) {
    let Some(containerd) = Containerd::start(scratch, "pushing with an account").await else { return };
    let name = |tag: &str| format!("{host}/mine/app:{tag}");
    let fetched = containerd.ctr(&["content", "fetch", "--plain-http", &name("v1")]).await;
    assert!(fetched.status.success(), "{}", said(&fetched));
    let tagged = containerd.ctr(&["image", "tag", &name("v1"), &name("v2")]).await;
    assert!(tagged.status.success(), "{}", said(&tagged));
    let stranger = containerd.ctr(&["image", "push", "--plain-http", &name("v2")]).await;
    assert!(!stranger.status.success(), "{}", said(&stranger));
    let push = ["image", "push", "--plain-http", "--user", "stager:its secret", &name("v2")];
    let pushed = containerd.ctr(&push).await;
    assert!(pushed.status.success(), "{}", said(&pushed));
    let fetched = containerd.ctr(&["content", "fetch", "--plain-http", &name("v2")]).await;
    assert!(fetched.status.success(), "{}", said(&fetched));
    containerd.stop().await;
}

/// A daemon that touches nothing of the machine's: no bridge, no firewall, all its state below a directory.
struct Docker {
    daemon: tokio::process::Child,
    directory: PathBuf,
}

impl Docker {
    async fn start(scratch: &Path, what: &str) -> Option<Docker> {
        if !common::is_root() {
            println!("SKIPPED {what} with Docker: needs root");
            return None;
        }
        let directory = scratch.join("docker");
        std::fs::create_dir_all(&directory).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut docker = tokio::process::Command::new("dockerd");
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            docker.arg(flag).arg(directory.join(name));
        }
        docker.arg("--host").arg(Docker::host(&directory));
        docker.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs"]);
        docker.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        docker.kill_on_drop(true);
        let Ok(daemon) = docker.spawn() else {
            println!("SKIPPED {what} with Docker: dockerd is not installed");
            return None;
        };
        let mut docker = Docker { daemon, directory };
        for _ in 0..1200 {
            if docker.run(&["version"]).await.is_some_and(|output| output.status.success()) {
                return Some(docker);
            }
            if !matches!(docker.daemon.try_wait(), Ok(None)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(docker.directory.join("log")).unwrap_or_default();
        println!(
            "SKIPPED {what} with Docker: dockerd does not start: {}",
            log.lines().last().unwrap_or_default()
        );
        docker.stop().await;
        None
    }

    fn host(directory: &Path) -> String {
        format!("unix://{}", directory.join("socket").display())
    }

    async fn run(&self, arguments: &[&str]) -> Option<Output> {
        let mut client = tokio::process::Command::new("docker");
        client
            .arg("--config")
            .arg(self.directory.join("client"))
            .arg("--host")
            .arg(Docker::host(&self.directory));
        client.args(arguments).output().await.ok()
    }

    async fn succeeds(&self, arguments: &[&str]) {
        let output = self.run(arguments).await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    }

    /// Asked first: it has a containerd of its own to stop.
    async fn stop(mut self) {
        if let Some(pid) = self.daemon.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), self.daemon.wait()).await;
        if ended.is_err() {
            let _ = self.daemon.kill().await;
        }
    }
}

async fn docker_pushes(scratch: &Path, host: &str) {
    let Some(docker) = Docker::start(scratch, "pushing with an account").await else { return };
    let name = |tag: &str| format!("{host}/mine/app:{tag}");
    // Without an account Docker pulls, and is refused when it pushes.
    docker.succeeds(&["pull", "-q", &name("v1")]).await;
    docker.succeeds(&["tag", &name("v1"), &name("docker")]).await;
    let stranger = docker.run(&["push", &name("docker")]).await.unwrap();
    assert!(!stranger.status.success(), "{}", said(&stranger));
    let login = |password| ["login", "-u", "stager", "-p", password];
    let wrong = docker.run(&[&login("guess")[..], &[host]].concat()).await.unwrap();
    assert!(!wrong.status.success(), "{}", said(&wrong));
    docker.succeeds(&[&login("its secret")[..], &[host]].concat()).await;
    docker.succeeds(&["push", "-q", &name("docker")]).await;
    docker.succeeds(&["rmi", &name("docker"), &name("v1")]).await;
    docker.succeeds(&["logout", host]).await;
    docker.succeeds(&["pull", "-q", &name("docker")]).await;
    docker.stop().await;
}
