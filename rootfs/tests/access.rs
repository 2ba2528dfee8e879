//! What an operator may say about registries: mirrors, certificates, credentials and who keeps them.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{BuiltImage, FakeRegistry, Login, Mood, Tar, USER, image};
use diego_base::tls::{Files, ServerTls};
use rootfs::digest::Digest;
use rootfs::image::{Reference, Selector};
use rootfs::registry::{Access, Client, Error, Policy, Retry};
use rootfs::{Config, ImageRef, Store};
use serde_json::json;

fn policy() -> Policy {
    let retry = Retry { first_wait: Duration::from_millis(10), ..Retry::default() };
    Policy { retry, stall_max: Duration::from_millis(500), ..Policy::default() }
}

fn access(policy: Policy, host: &str) -> Arc<Access> {
    let selector = Selector::Tag("v1".into());
    let reference = Reference { host: Some(host.into()), repository: "team/app".into(), selector };
    Client::new(policy).unwrap().access(&reference, None)
}

async fn manifest(policy: Policy, host: &str) -> Result<Digest, Error> {
    access(policy, host).manifest(&Selector::Tag("v1".into())).await.map(|fetched| fetched.digest)
}

fn built() -> BuiltImage {
    image(&[Tar::default().file("a", &"a".repeat(5000)).bytes()], json!({}))
}

async fn registry(login: Login) -> (FakeRegistry, BuiltImage) {
    let (registry, image) = (FakeRegistry::start(login).await, built());
    registry.add("v1", &image);
    (registry, image)
}

fn mirrors(of: &str, places: &[&str]) -> Policy {
    let mirrors = places.iter().map(|place| format!("{of}={place}").parse().unwrap()).collect();
    Policy { mirrors, ..policy() }
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_at_last() {
    let (origin, image) = registry(Login::None).await;
    let (empty, gone) = (FakeRegistry::start(Login::None).await, FakeRegistry::start(Login::None).await);
    let (good, _) = registry(Login::None).await;
    let host = origin.address.to_string();
    let places = [&gone, &empty, &good].map(|registry| registry.address.to_string());
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    gone.stop().await;
    let access = access(mirrors(&host, &places), &host);
    let selector = Selector::Tag("v1".into());
    assert_eq!(access.manifest(&selector).await.unwrap().digest, image.digest);
    assert_eq!(access.digest(&selector).await.unwrap(), Some(image.digest.clone()));
    assert_eq!(access.blob_size(&image.blobs[0].0).await.unwrap(), image.blobs[0].1.len() as u64);
    let seen = good.seen();
    // Each is told which registry is meant, as mirrors of several must know.
    assert_eq!(seen.queries, vec![format!("ns={host}"); 3], "{seen:?}");
    assert_eq!((empty.seen().queries.len(), origin.seen().manifests), (3, 0));
    // Of what goes wrong with all of them the registry's own answer is told.
    for registry in [&good, &origin] {
        registry.next_manifests([Mood::Refuse(503, None)].into_iter().cycle().take(4));
    }
    let error = manifest(mirrors(&host, &places), &host).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("registry {host} fails (503) when asked for image {host}/team/app:v1: try again later")
    );
    assert_eq!((good.seen().manifests, origin.seen().manifests), (1, 4), "a mirror is not waited for");
}

#[tokio::test]
async fn what_a_mirror_breaks_off_or_gets_wrong_the_registry_puts_right() {
    if !common::is_root() {
        return println!(
            "SKIPPED what_a_mirror_breaks_off_or_gets_wrong_the_registry_puts_right: needs root"
        );
    }
    let scratch = tempfile::tempdir().unwrap();
    let (origin, image) = registry(Login::None).await;
    let (mirror, _) = registry(Login::None).await;
    let host = origin.address.to_string();
    for (name, mood, ranges) in
        [("cut", Mood::Break(60), vec!["bytes=60-".to_string()]), ("wrong", Mood::Lie, Vec::new())]
    {
        let registries = mirrors(&host, &[&mirror.address.to_string()]);
        let config = Config { registries, ..Config::default() };
        let store = Store::open(&scratch.path().join(name), config).unwrap();
        // The first blob is the configuration.
        mirror.next_blobs([Mood::Good, mood]);
        let uri: ImageRef = format!("docker://{host}/team/app:v1").parse().unwrap();
        assert_eq!(store.pull(&uri, None, &|_| {}).await.unwrap().digest, image.digest);
        let seen = origin.seen();
        assert_eq!((seen.manifests, seen.blobs, seen.ranges), (0, 1, ranges), "{name}");
    }
}

#[tokio::test]
async fn a_large_blob_comes_in_parts() {
    let registry = FakeRegistry::start(Login::None).await;
    let noise: Vec<u8> =
        (0..20_000_003u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let digest = Digest::of(&noise);
    let image = BuiltImage { blobs: vec![(digest.clone(), noise.clone())], ..built() };
    registry.add("v1", &image);
    let access = access(policy(), &registry.address.to_string());
    let fetch = async || {
        let (sender, mut pieces) = tokio::sync::mpsc::channel::<bytes::Bytes>(4);
        let receiving = async {
            let mut whole = Vec::new();
            while let Some(piece) = pieces.recv().await {
                whole.extend_from_slice(&piece);
            }
            whole
        };
        let fetching = async {
            let fetched = access.blob(&digest, noise.len() as u64, &sender).await;
            drop(sender);
            fetched
        };
        let (fetched, whole) = tokio::join!(fetching, receiving);
        fetched.map(|()| whole == noise)
    };
    assert!(fetch().await.unwrap());
    let mut ranges = registry.seen().ranges;
    ranges.sort();
    let starts = (0..noise.len()).step_by(1 << 20);
    let range = |start: usize| match start + (1 << 20) {
        end if end < noise.len() => format!("bytes={start}-{}", end - 1),
        _ => format!("bytes={start}-"),
    };
    let mut expected: Vec<String> = starts.map(range).collect();
    expected.sort();
    assert_eq!(ranges, expected);
    // Trouble with one part is its own.
    registry.next_blobs([Mood::Good, Mood::Refuse(503, None), Mood::Good, Mood::Refuse(500, None)]);
    assert!(fetch().await.unwrap());
    registry.seen();
    // A registry that knows no parts sends all of it at once.
    registry.next_blobs([Mood::Longer, Mood::Unranged]);
    assert!(fetch().await.unwrap_err().to_string().contains("whose manifest says 20000003"));
    assert!(fetch().await.unwrap());
    assert_eq!(registry.seen().blobs, 2);
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn a_registry_may_have_an_authority_and_want_a_certificate_of_its_own() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    // An authority, and a certificate that it signed with its key.
    let signed = |usage: rcgen::ExtendedKeyUsagePurpose| {
        let (authority_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let mut parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        parameters.extended_key_usages = vec![usage];
        (pem, parameters.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (authority, server, server_key) = signed(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let (clients, ours, our_key) = signed(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    write(&path("server.pem"), &server);
    write(&path("server.key"), &server_key);
    write(&path("clients.pem"), &clients);
    let files = Files { cert: path("server.pem"), key: path("server.key"), ca: Some(path("clients.pem")) };
    let registry = FakeRegistry::start_with(Login::None, Some(ServerTls::load(&files).unwrap())).await;
    let image = built();
    registry.add("v1", &image);
    let host = registry.address.to_string();
    let with = |directory: &str| Policy { certificates: Some(path(directory)), ..policy() };
    write(&path(&format!("both/{host}/authority.crt")), &authority);
    write(&path(&format!("both/{host}/cell.cert")), &ours);
    write(&path(&format!("both/{host}/cell.key")), &our_key);
    assert_eq!(manifest(with("both"), &host).await.unwrap(), image.digest);
    // Each is needed, and what is wrong with them is told.
    write(&path(&format!("nobody/{host}/authority.crt")), &authority);
    assert!(manifest(with("nobody"), &host).await.unwrap_err().to_string().contains("cannot be reached"));
    write(&path(&format!("unknown/{host}/cell.cert")), &ours);
    write(&path(&format!("unknown/{host}/cell.key")), &our_key);
    let error = manifest(with("unknown"), &host).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    write(&path(&format!("keyless/{host}/cell.cert")), &ours);
    let error = manifest(with("keyless"), &host).await.unwrap_err().to_string();
    assert!(error.contains("cell.key: No such file"), "{error}");
}

#[tokio::test]
async fn credentials_of_a_file_open_their_registry_and_no_other() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("config.json");
    for login in [Login::Basic, Login::Token] {
        let (registry, image) = registry(login).await;
        let host = registry.address.to_string();
        let with = || Policy { credentials: Some(file.clone()), ..policy() };
        let auth = |host: &str, user: (&str, &str)| {
            json!({"auths": {host: {"username": user.0, "password": user.1}}}).to_string()
        };
        write(&file, &auth("other.example", USER));
        let error = manifest(with(), &host).await.unwrap_err().to_string();
        assert!(error.contains("does not let anonymous users read"), "{error}");
        write(&file, &auth(&host, USER));
        assert_eq!(manifest(with(), &host).await.unwrap(), image.digest);
        write(&file, &auth(&format!("{host}/team"), USER));
        assert_eq!(manifest(with(), &host).await.unwrap(), image.digest);
        write(&file, &auth(&host, ("user", "wrong")));
        let error = manifest(with(), &host).await.unwrap_err().to_string();
        assert!(error.contains("does not accept the credentials given"), "{error}");
        write(&file, "{");
        let error = manifest(with(), &host).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot find out who we are to registry {host}: ")), "{error}");
    }
    let absent = Policy { credentials: Some(scratch.path().join("absent")), ..policy() };
    assert!(Client::new(absent).unwrap_err().to_string().contains("absent: No such file"));
}

const HELPED: &str = "ROOTFS_TEST_HELPED";

/// Not a test by itself: what the next one starts with a helper on its path.
#[tokio::test]
async fn a_process_with_a_helper() {
    let Ok(argument) = std::env::var(HELPED) else { return };
    let (file, host) = argument.split_once(' ').unwrap();
    match manifest(Policy { credentials: Some(file.into()), ..policy() }, host).await {
        Ok(digest) => println!("answer: {digest}"),
        Err(error) => println!("answer: {error}"),
    }
}

#[tokio::test]
async fn a_helper_is_asked_for_credentials() {
    let scratch = tempfile::tempdir().unwrap();
    let (registry, image) = registry(Login::Token).await;
    let host = registry.address.to_string();
    let config = scratch.path().join("config.json");
    write(&config, &json!({"credHelpers": {host.clone(): "test"}}).to_string());
    let helper = scratch.path().join("docker-credential-test");
    let path = format!("{}:{}", scratch.path().display(), std::env::var("PATH").unwrap());
    let ask = async |script: &str| {
        write(&helper, &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_process_with_a_helper", "--nocapture"]).env("PATH", &path);
        let output = child.env(HELPED, format!("{} {host}", config.display())).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let answer = text.lines().find_map(|line| line.split_once("answer: "));
        answer.unwrap_or_else(|| panic!("{text}")).1.replace(&host, "HOST")
    };
    let knows = format!(
        r#"[ "$1" = get ] && [ "$(cat)" = "{host}" ] && echo '{{"ServerURL":"x","Username":"{}","Secret":"{}"}}'"#,
        USER.0, USER.1
    );
    assert_eq!(ask(&knows).await, image.digest.to_string());
    let none = ask("echo 'credentials not found in native keychain'; exit 1").await;
    assert!(none.starts_with("registry HOST does not let anonymous users read image"), "{none}");
    assert_eq!(
        ask("echo 'the vault is closed'; exit 3").await,
        "cannot find out who we are to registry HOST: helper docker-credential-test: exit status: 3: the vault is closed"
    );
    let silly = ask("head -c 1000000 /dev/zero").await;
    assert!(
        silly.starts_with("cannot find out who we are to registry HOST: helper docker-credential-test"),
        "{silly}"
    );
}

#[test]
fn a_directory_that_others_use_is_never_taken_for_a_store() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(scratch.path().join("tmp/letters")).unwrap();
    let refused = Store::open(scratch.path(), Config::default()).err().expect("it is others'").to_string();
    assert!(refused.contains("is used by others, who keep 'tmp' there"), "{refused}");
    assert!(scratch.path().join("tmp/letters").exists());
}
