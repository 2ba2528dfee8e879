//! `builder`, `launcher` and `healthcheck` as whole programs.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(file: &Path, content: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
    if content.starts_with("#!") {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// An app, buildpacks and the places a staging writes to.
struct Staging {
    directory: tempfile::TempDir,
}

impl Staging {
    fn new() -> Staging {
        let staging = Staging { directory: tempfile::tempdir().unwrap() };
        write(&staging.path("app/app.sh"), "#!/bin/sh\necho hello\n");
        staging
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn buildpack(&self, name: &str, scripts: &[(&str, &str)]) {
        for (script, body) in scripts {
            let file = self.path("buildpacks").join(name).join("bin").join(script);
            write(&file, &format!("#!/bin/sh\n{body}\n"));
        }
    }

    fn build(&self, flags: &[&str]) -> Output {
        let flag = |name: &str, file: &str| format!("-{name}={}", self.path(file).display());
        fs::create_dir_all(self.path("tmp")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_builder"))
            .args([
                flag("buildDir", "app"),
                flag("buildpacksDir", "buildpacks"),
                flag("buildpacksDownloadDir", "downloads"),
                flag("buildArtifactsCacheDir", "cache"),
                flag("outputDroplet", "out/droplet.tgz"),
                flag("outputMetadata", "out/result.json"),
                flag("outputBuildArtifactsCache", "out/cache.tgz"),
            ])
            .args(flags)
            .env("TMPDIR", self.path("tmp"))
            .output()
            .unwrap()
    }

    fn result(&self) -> String {
        fs::read_to_string(self.path("out/result.json")).unwrap()
    }

    /// The files of the droplet, unpacked.
    fn droplet(&self) -> PathBuf {
        let into = self.path("droplet");
        fs::create_dir_all(&into).unwrap();
        let tar =
            Command::new("tar").arg("-xzf").arg(self.path("out/droplet.tgz")).arg("-C").arg(&into).status();
        assert!(tar.unwrap().success());
        into
    }
}

const RELEASE: &str = "echo '---'; echo 'default_process_types:'; echo '  web: ./app.sh'";

#[test]
fn a_detected_buildpack_makes_a_droplet() {
    let staging = Staging::new();
    staging.buildpack("no", &[("detect", "exit 1")]);
    let compile = "echo compiling $1; echo built > $1/built; echo cached > $2/c";
    staging.buildpack("yes", &[("detect", "echo Simple"), ("compile", compile), ("release", RELEASE)]);
    write(&staging.path("app/Procfile"), "worker: ./work\n");
    write(&staging.path("cache/stale/x"), "");
    let output = staging.build(&["-buildpackOrder=no,yes"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("compiling {}\n", staging.path("app").display()));
    assert_eq!(
        staging.result(),
        concat!(
            r#"{"lifecycle_metadata":{"buildpack_key":"yes","detected_buildpack":"Simple","#,
            r#""buildpacks":[{"key":"yes","name":"Simple"}]},"process_types":{"web":"./app.sh","worker":"./work"},"#,
            r#""processes":[{"type":"web","command":"./app.sh"},{"type":"worker","command":"./work"}],"#,
            r#""execution_metadata":"","lifecycle_type":"buildpack"}"#,
            "\n"
        )
    );
    let droplet = staging.droplet();
    let mut names: Vec<_> = fs::read_dir(&droplet).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["app", "deps", "logs", "profile.d", "staging_info.yml", "tmp"]);
    assert_eq!(
        fs::read_to_string(droplet.join("staging_info.yml")).unwrap(),
        "{\"detected_buildpack\":\"Simple\",\"start_command\":\"./app.sh\"}\n"
    );
    assert!(droplet.join("app/built").exists());
    let listed = Command::new("tar").arg("-tzf").arg(staging.path("out/cache.tgz")).output().unwrap();
    assert_eq!(text(&listed.stdout), "./\n./final/\n./final/c\n");
    assert_eq!(fs::read_dir(staging.path("tmp")).unwrap().count(), 0, "something is left behind");
}

#[test]
fn many_buildpacks_supply_and_the_last_finalizes() {
    let staging = Staging::new();
    let supply = "mkdir -p $3/$4; echo name: Supplier > $3/$4/config.yml; echo dep > $3/$4/dep; \
        printf 'processes:\\n- type: side\\n  command: s\\n  limits: {memory: 9}\\n  platforms: {cloudfoundry: {sidecar_for: [web]}}\\n' > $3/$4/launch.yml";
    staging.buildpack("first", &[("supply", supply)]);
    let finalize = "printf 'name: Last\\nversion: 1.0\\nconfig: {entrypoint_prefix: env}\\n' > $3/$4/config.yml; \
        echo 'export FROM_PROFILE=1' > $5/a.sh";
    staging.buildpack("last", &[("supply", "exit 0"), ("finalize", finalize), ("release", RELEASE)]);
    let output = staging.build(&["-buildpackOrder=first,last", "-skipDetect"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let result: serde_json::Value = serde_json::from_str(&staging.result()).unwrap();
    assert_eq!(
        result["lifecycle_metadata"]["buildpacks"],
        serde_json::json!([
            {"key": "first", "name": "Supplier"},
            {"key": "last", "name": "Last", "version": "1.0", "config": {"entrypoint_prefix": "env"}}
        ])
    );
    assert_eq!(
        result["sidecars"],
        serde_json::json!([{"name": "side", "process_types": ["web"], "command": "s", "memory": 9}])
    );
    let droplet = staging.droplet();
    assert!(droplet.join("deps/0/dep").exists() && droplet.join("profile.d/a.sh").exists());
}

#[test]
fn each_way_to_fail_has_its_code_and_words() {
    let table: [(&[(&str, &str)], &[&str], i32, &str); 8] = [
        (&[("detect", "exit 1")], &[], 222, "None of the buildpacks detected a compatible application"),
        (
            &[("detect", "exit 0"), ("compile", "exit 5")],
            &[],
            223,
            "Failed to compile droplet: exit status 5",
        ),
        (
            &[("detect", "exit 0"), ("finalize", "kill -9 $$")],
            &[],
            223,
            "Failed to compile droplet: Failed to run finalize script: signal: 9",
        ),
        (
            &[("detect", "exit 0"), ("compile", "exit 0"), ("release", "exit 1")],
            &[],
            224,
            "Failed to build droplet release: exit status 1",
        ),
        (
            &[("detect", "exit 0"), ("compile", "exit 0"), ("release", "echo 'default_process_types: [a'")],
            &[],
            224,
            "Failed to build droplet release: buildpack's release output invalid",
        ),
        (
            &[("compile", "exit 0")],
            &["-skipDetect", "-buildpackOrder=b,b"],
            225,
            "does not support multi-buildpack apps",
        ),
        (
            &[("supply", "exit 4")],
            &["-skipDetect", "-buildpackOrder=b,b"],
            225,
            "Failed to run all supply scripts: exit status 4",
        ),
        (
            &[("detect", "exit 0")],
            &["-skipDetect", "-buildpackOrder=other"],
            225,
            "Failed to read buildpack directory",
        ),
    ];
    for (scripts, flags, code, words) in table {
        let staging = Staging::new();
        staging.buildpack("b", scripts);
        let flags = if flags.is_empty() { &["-buildpackOrder=b"] } else { flags };
        let output = staging.build(flags);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words}: {said}");
        assert!(said.contains(words), "{words}: {said}");
        assert!(!staging.path("out/droplet.tgz").exists());
        assert_eq!(
            fs::read_dir(staging.path("tmp")).unwrap().count(),
            0,
            "{words}: something is left behind"
        );
    }
}

#[test]
fn a_failed_build_still_tells_its_buildpacks() {
    let staging = Staging::new();
    staging.buildpack("b", &[("detect", "exit 0"), ("compile", "exit 5")]);
    staging.build(&["-buildpackOrder=b"]);
    let result: serde_json::Value = serde_json::from_str(&staging.result()).unwrap();
    assert_eq!(result["lifecycle_metadata"]["buildpack_key"], "b");
    assert_eq!(result["process_types"], serde_json::Value::Null);
}

fn zipped(staging: &Staging, name: &str) -> Vec<u8> {
    use zip::write::SimpleFileOptions;
    let file = staging.path(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut writer = zip::ZipWriter::new(fs::File::create(&file).unwrap());
    let options = SimpleFileOptions::default().unix_permissions(0o755);
    for (script, body) in [("detect", "echo Zipped"), ("compile", "exit 0"), ("release", RELEASE)] {
        writer.start_file(format!("nested/bin/{script}"), options).unwrap();
        writer.write_all(format!("#!/bin/sh\n{body}\n").as_bytes()).unwrap();
    }
    writer.finish().unwrap();
    fs::read(file).unwrap()
}

#[test]
fn a_zipped_buildpack_comes_from_a_file_or_over_http() {
    let staging = Staging::new();
    let archive = zipped(&staging, "buildpacks/packed.zip");
    let output = staging.build(&["-buildpackOrder=packed"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(staging.result().contains("Zipped"));

    let staging = Staging::new();
    let address = serve(move |_| {
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", archive.len())
                .into_bytes();
        answer.extend_from_slice(&archive);
        answer
    });
    let output = staging.build(&[&format!("-buildpackOrder=http://{address}/b.zip")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with(&format!("Downloaded buildpack `http://{address}/b.zip` (")));

    let address = serve(|_| b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
    let output = staging.build(&[&format!("-buildpackOrder=http://{address}/b.zip")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("status code 404"), "{}", text(&output.stderr));
}

/// Answers every request with what `answer` makes of its head; gives the address.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            // A client that has left early is none of the server's business.
            let _ = stream.write_all(&answer(&String::from_utf8_lossy(&request[..length])));
        }
    });
    address
}

fn launch(directory: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_launcher"))
        .args(words)
        .current_dir(directory)
        .env("VCAP_APPLICATION", r#"{"foo":1}"#)
        .env("PORT", "8080")
        .env("INSTANCE_INDEX", "3")
        .env("INSTANCE_GUID", "guid")
        .output()
        .unwrap()
}

#[test]
fn an_app_starts_after_its_profiles_in_its_directory() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    write(&home.join("app/.profile"), "export ORDER=$ORDER,own");
    write(&home.join("app/.profile.d/b.sh"), "export ORDER=$ORDER,buildpack");
    write(&home.join("profile.d/a b.sh"), "export ORDER=platform");
    let output = launch(
        &home,
        &["app", "echo $ORDER $PWD $HOME $TMPDIR $DEPS_DIR; echo $VCAP_APPLICATION; exit 6", ""],
    );
    let home = home.display();
    assert_eq!(
        text(&output.stdout),
        format!(
            "Invoking pre-start scripts.\nInvoking start command.\nplatform,buildpack,own {home}/app {home}/app {home}/tmp {home}/deps\n\
             {{\"foo\":1,\"host\":\"0.0.0.0\",\"instance_id\":\"guid\",\"instance_index\":3,\"port\":8080}}\n"
        )
    );
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
}

#[test]
fn a_droplet_says_how_it_starts() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("app")).unwrap();
    let output = launch(home.path(), &["app", "", ""]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("launcher: no start command specified or detected in droplet"));
    for info in
        ["{\"start_command\":\"echo staged\"}", "---\nstart_command: echo staged\ndetected_buildpack: x\n"]
    {
        write(&home.path().join("staging_info.yml"), info);
        let output = launch(home.path(), &["app", "", "{}"]);
        assert_eq!(text(&output.stdout), "Invoking pre-start scripts.\nInvoking start command.\nstaged\n");
    }
    write(&home.path().join("staging_info.yml"), "a: [");
    assert!(text(&launch(home.path(), &["app", "", ""]).stderr).contains("Invalid staging info - "));
    let output = launch(home.path(), &["app", ""]);
    assert!(text(&output.stderr).contains("received only 2 arguments\nUsage: "));
}

#[test]
fn an_image_starts_with_its_entrypoint_and_command() {
    let directory = tempfile::tempdir().unwrap();
    let metadata = r#"{"entrypoint":["sh","-c","pwd; echo $0 $1"],"cmd":["a","b"],"workdir":"/usr"}"#;
    let output = launch(directory.path(), &["", "", metadata]);
    assert_eq!(text(&output.stdout), "/usr\na b\n", "{}", text(&output.stderr));
    let output = launch(directory.path(), &["", "echo mine", metadata]);
    assert_eq!(text(&output.stdout), "mine\n");
    let output = launch(directory.path(), &["", "", r#"{"workdir":"/none","cmd":["sh"]}"#]);
    assert!(text(&output.stderr).contains("Couldn't change directories to /none"));
    assert_eq!(output.status.code(), Some(1));
}

fn healthcheck(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_healthcheck")).args(flags).output().unwrap()
}

/// The machine's own address; checks never use the loopback one.
fn own_address(test: &str) -> Option<std::net::Ipv4Addr> {
    let addresses = lifecycle::interfaces::ipv4_addresses().unwrap();
    let address = addresses.into_iter().find(|address| !address.is_loopback());
    if address.is_none() {
        println!("SKIPPED {test}: no interface but the loopback one");
    }
    address
}

/// An HTTP server on all addresses, which answers with this status line and headers.
fn answering(head: &'static str) -> String {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            let asked = text(&request[..length]);
            let answer = match asked.starts_with("GET /moved ") {
                true => "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".to_owned(),
                false => format!("{head}\r\nContent-Length: 2\r\n\r\nok"),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn checks_pass_and_fail_with_the_platforms_codes() {
    let Some(address) = own_address("checks_pass_and_fail_with_the_platforms_codes") else {
        return;
    };
    let good = answering("HTTP/1.1 200 OK");
    let bad = answering("HTTP/1.1 503 Busy");
    let closed = {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    };
    let silent = TcpListener::bind("0.0.0.0:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port().to_string();
    let check = |flags: &[&str], code: i32, words: &str| {
        let output = healthcheck(flags);
        assert_eq!(output.status.code(), Some(code), "{flags:?} {}", text(&output.stderr));
        assert!(text(&output.stderr).starts_with(words), "{flags:?} {}", text(&output.stderr));
    };
    check(&["-port", &good], 0, "");
    check(&["-port", &good, "-uri=/"], 0, "");
    check(&["-port", &good, "-uri", "/moved"], 0, "");
    let refused = format!(
        "failed to make TCP connection to {address}:{closed}: dial tcp {address}:{closed}: connect: connection refused\n"
    );
    check(&["-port", &closed], 4, &refused);
    let refused = format!("failed to make HTTP request to '/x' on port {closed}: connection refused\n");
    check(&["-port", &closed, "-uri=/x"], 5, &refused);
    let busy = format!("failed to make HTTP request to '/' on port {bad}: received status code 503 in ");
    check(&["-port", &bad, "-uri=/"], 6, &busy);
    let slow =
        format!("failed to make HTTP request to '/' on port {silent_port}: timed out after 0.20 seconds\n");
    check(&["-port", &silent_port, "-uri=/", "-timeout=200ms"], 65, &slow);
    check(
        &["-port", &bad, "-uri=/", "-liveness-interval=1s"],
        6,
        "Liveness check unsuccessful: failed to make HTTP",
    );
    check(
        &["-port", &bad, "-uri=/", "-readiness-interval=1s"],
        6,
        "Readiness check unsuccessful: failed to make HTTP",
    );
    check(&["-port", &good, "-until-ready-interval=1s"], 0, "");
    check(&["-port", &good, "-startup-interval=1s"], 0, "");
    let words = "Timed out after 300ms (3 attempts) waiting for startup check to succeed: failed to make TCP";
    check(&["-port", &closed, "-startup-interval=100ms", "-startup-timeout=300ms"], 4, words);
    check(&["-colour=red"], 2, "flag provided but not defined: -colour\n");
}
