//! TLS as clients meet it: over sockets of this machine, and once in a network of its own.

use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::buffer::Buffer;
use super::relay::{Activity, Arrival, Relay};
use super::session::Session;
use super::*;

#[path = "records_tests.rs"]
mod records;
#[path = "strangers_tests.rs"]
mod strangers;

const NAME: &str = "instance-guid";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    fn issue(&self, name: &str) -> Issued {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.into()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate_chain_pem: certificate.pem() + &self.pem, private_key_pem: key.serialize_pem() }
    }

    fn client(&self, shows: Option<&Issued>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        diego_base::tls::install_provider();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
        let mut config = match shows {
            None => config.with_no_client_auth(),
            Some(shows) => {
                let chain = CertificateDer::pem_slice_iter(shows.certificate_chain_pem.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(shows.private_key_pem.as_bytes()).unwrap();
                config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

async fn tls(stream: TcpStream, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
}

/// Two ends of one connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (here, there) = tokio::join!(connecting, listener.accept());
    (here.unwrap(), there.unwrap().0)
}

fn config(proxy: &ContainerProxy, issued: &Issued) -> Arc<rustls::ServerConfig> {
    Manners::of(proxy).unwrap().for_routers(issued).unwrap()
}

/// The client's end of the connection, and the app's; what is between them runs.
async fn relayed(
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
) -> (TlsStream<TcpStream>, TcpStream) {
    let ((outside, inside), (to_app, app)) = (pair().await, pair().await);
    let config = config(&ContainerProxy::default(), &authority.issue(NAME));
    tokio::spawn(async move {
        let client = Arrival::new(inside, Session::new(config).unwrap()).shake_hands().await.unwrap();
        let activity = Activity::now();
        Relay::new(client, to_app, &activity).run().await
    });
    (tls(outside, authority.client(None, &[version])).await.unwrap(), app)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_passes_both_ways_at_once_and_each_end_may_finish_first() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let authority = authority();
        let (client, app) = relayed(&authority, version).await;
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut from_client, mut to_client) = app.into_split();
        let (mut from_app, mut to_app) = tokio::io::split(client);
        let (up, down) = (pattern(5_000_001), pattern(7_000_003));
        let sent = (up.clone(), down.clone());
        let app = async {
            let write = async { to_client.write_all(&sent.1).await.unwrap() };
            let read = async {
                let mut all = Vec::new();
                from_client.read_to_end(&mut all).await.unwrap();
                all
            };
            let (got, ()) = tokio::join!(read, write);
            // The client has finished; the app has not.
            to_client.write_all(b"and this").await.unwrap();
            to_client.shutdown().await.unwrap();
            got
        };
        let client = async {
            let write = async {
                to_app.write_all(&sent.0).await.unwrap();
                to_app.shutdown().await.unwrap();
            };
            let read = async {
                let mut all = Vec::new();
                from_app.read_to_end(&mut all).await.unwrap();
                all
            };
            tokio::join!(read, write).0
        };
        let (got_up, got_down) = tokio::join!(app, client);
        assert!(got_up == up, "{version:?}: {} bytes", got_up.len());
        assert!(got_down == [&down[..], b"and this"].concat(), "{version:?}: {} bytes", got_down.len());
    }
}

/// Without a byte for so long, what is waited for does not come.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_writes_more_than_its_client_reads_has_to_wait() {
    let authority = authority();
    let (mut client, mut app) = relayed(&authority, &rustls::version::TLS13).await;
    let (piece, pause) = (pattern(1 << 16), Duration::from_millis(500));
    let (mut written, began) = (0_usize, Instant::now());
    while let Ok(result) = tokio::time::timeout(pause, app.write(&piece)).await {
        written += result.unwrap();
        assert!(written < 64 << 20, "nobody holds it back");
        assert!(began.elapsed() < PATIENCE, "it has been writing for so long: {written}");
    }
    drop(app);
    let (mut read, mut room) = (0, vec![0; 1 << 16]);
    loop {
        let more = tokio::time::timeout(PATIENCE, client.read(&mut room)).await;
        match more
            .unwrap_or_else(|_| panic!("of {written} bytes {read} came, and then none nor an end"))
            .unwrap()
        {
            0 => break,
            more => read += more,
        }
    }
    // Of a write that was given up a part may be on its way.
    assert!((written..=written + piece.len()).contains(&read), "{read} of {written}");
}

#[tokio::test]
async fn a_connection_on_which_nothing_happens_holds_no_buffer() {
    let authority = authority();
    let ((outside, inside), (to_app, mut app)) = (pair().await, pair().await);
    let config = config(&ContainerProxy::default(), &authority.issue(NAME));
    let arrival = Arrival::new(inside, Session::new(config).unwrap());
    let connecting = tls(outside, authority.client(None, &[&rustls::version::TLS13]));
    let (shaken, connected) = tokio::join!(arrival.shake_hands(), connecting);
    let mut outside = connected.unwrap();
    let activity = Activity::now();
    let mut relay = Relay::new(shaken.unwrap(), to_app, &activity);
    let exchange = async {
        outside.write_all(&pattern(100_000)).await.unwrap();
        let mut got = vec![0; 100_000];
        app.read_exact(&mut got).await.unwrap();
        app.write_all(&got).await.unwrap();
        outside.read_exact(&mut got).await.unwrap();
        assert!(got == pattern(100_000));
    };
    tokio::select! {
        ended = relay.run() => panic!("{ended:?}"),
        () = exchange => {}
    }
    assert_eq!(relay.bytes_held(), 0);
}

#[tokio::test]
async fn who_ends_without_a_word_ends_the_apps_connection_and_the_other_way_round() {
    let authority = authority();
    let (client, mut app) = relayed(&authority, &rustls::version::TLS13).await;
    drop(client);
    assert_eq!(app.read(&mut [0]).await.unwrap(), 0);
    let (mut client, app) = relayed(&authority, &rustls::version::TLS13).await;
    app.set_zero_linger().unwrap();
    drop(app);
    // Not an end that was meant.
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn only_clients_with_the_right_certificate_are_let_in() {
    let (ours, theirs) = (authority(), authority());
    let right = ours.issue("gorouter.service.cf.internal");
    let wrong_name = ours.issue("other.service.cf.internal");
    let wrong_authority = theirs.issue("gorouter.service.cf.internal");
    let strict = |names: &[&str]| ContainerProxy {
        require_client_certificates: true,
        trusted_ca_certificates_pem: vec![theirs.pem.replace("CERTIFICATE", "COMMENT"), ours.pem.clone()],
        verify_subject_alt_names: names.iter().map(|name| name.to_string()).collect(),
        ..ContainerProxy::default()
    };
    let (open, any, named) =
        (ContainerProxy::default(), strict(&[]), strict(&["x", "gorouter.service.cf.internal"]));
    let table = [
        (&open, None, true),
        (&open, Some(&wrong_authority), true),
        (&any, None, false),
        (&any, Some(&wrong_authority), false),
        (&any, Some(&wrong_name), true),
        (&named, None, false),
        (&named, Some(&wrong_name), false),
        (&named, Some(&right), true),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (case, (proxy, shows, is_let_in)) in table.iter().enumerate() {
            let (outside, inside) = pair().await;
            let config = config(proxy, &ours.issue(NAME));
            let arrival = Arrival::new(inside, Session::new(config).unwrap());
            let connecting = async {
                let mut stream = tls(outside, ours.client(*shows, &[version])).await?;
                // With the newer version a refusal is heard of with the first answer.
                stream.read(&mut [0]).await
            };
            let serving = async {
                match arrival.shake_hands().await {
                    Ok(client) => {
                        client.dismiss().await;
                        true
                    }
                    Err(_) => false,
                }
            };
            let (met, served) = tokio::join!(connecting, serving);
            assert_eq!((met.is_ok(), served), (*is_let_in, *is_let_in), "case {case}, {version:?}: {met:?}");
            if let Err(error) = met {
                assert!(error.to_string().contains("alert"), "it is told why: {error}");
            }
        }
    }
}

#[test]
fn a_cell_that_verifies_clients_must_know_by_whom() {
    let mut proxy = ContainerProxy { require_client_certificates: true, ..ContainerProxy::default() };
    let refused = |proxy: &ContainerProxy| Manners::of(proxy).unwrap_err().to_string();
    assert!(refused(&proxy).contains("there is no authority"));
    proxy.trusted_ca_certificates_pem =
        vec!["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".into()];
    assert!(refused(&proxy).starts_with("cannot read the authorities"));
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_replaced_certificate_go_when_they_are_quiet_or_when_it_ends() {
    let face = || Face::new(config(&ContainerProxy::default(), &authority().issue(NAME)));
    let seconds = Duration::from_secs;
    let began = Instant::now();
    let (activity, shown) = (Activity::now(), face());
    listener::outstayed(&activity, &shown).await;
    assert_eq!(began.elapsed(), seconds(3600), "an idle one goes after an hour");

    let (began, activity, shown) = (Instant::now(), Activity::now(), face());
    let retire = async {
        tokio::time::sleep(seconds(10)).await;
        shown.retire(seconds(1800));
    };
    tokio::join!(listener::outstayed(&activity, &shown), retire);
    assert_eq!(began.elapsed(), seconds(30), "a quiet one goes soon");

    let (began, activity, shown) = (Instant::now(), Activity::now(), face());
    shown.retire(seconds(1800));
    let busy = async {
        loop {
            tokio::time::sleep(seconds(5)).await;
            activity.note();
        }
    };
    tokio::select! {
        () = listener::outstayed(&activity, &shown) => {}
        () = busy => {}
    }
    assert_eq!(began.elapsed(), seconds(1800), "a busy one stays as long as its certificate is good");
}

/// A process in a network of its own, as a container's first one is.
struct Container(Child);

impl Container {
    /// `None`, with a line that says why, where there can be none.
    fn start(test: &str) -> Option<Container> {
        if !rustix::process::geteuid().is_root() || !std::path::Path::new("/bin/busybox").exists() {
            println!("SKIPPED {test}: needs root and /bin/busybox");
            return None;
        }
        let script = "/bin/busybox ip link set lo up && echo ready && exec /bin/busybox sleep 600";
        let mut child = Command::new("/bin/busybox")
            .args(["unshare", "-n", "/bin/busybox", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Container(child))
    }

    fn at(&self) -> NetworkNamespace {
        let pid = self.0.id() as i32;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        NetworkNamespace { pid, started }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_served_where_it_is_and_its_connections_are_drained() {
    let Some(container) =
        Container::start("a_container_is_served_where_it_is_and_its_connections_are_drained")
    else {
        return;
    };
    let (authority, others) = (authority(), authority());
    let proxy = ContainerProxy { connections_max: 2, ..ContainerProxy::default() };
    let edges = Edges::new(&proxy, Errands::start().unwrap()).unwrap();
    let fronts = [Front { app_port: 8080, port: 61001 }, Front { app_port: 8080, port: 61443 }];
    let (first, other) = (authority.issue(NAME), others.issue(NAME));
    let shown = Shown { to_routers: &first, to_containers: &other };
    let stop = CancellationToken::new();
    let app_ip = [127, 0, 0, 1].into();
    let place = Place { network: container.at(), app: app_ip, has_ipv6: false };
    let open = |stop| edges.open("h", place, &fronts, shown, stop);
    let edge = open(stop.child_token()).await.unwrap();

    let inside = Arc::new(Namespace::open(container.at()).unwrap());
    let connect = async |port: u16, authority: &Authority| {
        let socket = edges.errands.stream(&inside, app_ip).await.unwrap();
        let socket = tokio::net::TcpSocket::from_std_stream(socket);
        let stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
        tls(stream, authority.client(None, &[&rustls::version::TLS13])).await
    };
    assert!(TcpStream::connect("127.0.0.1:61001").await.is_err(), "not here");
    // No app: a clean end.
    let mut early = connect(61001, &authority).await.unwrap();
    assert_eq!(early.read(&mut [0]).await.unwrap(), 0);

    let app = TcpListener::from_std(edges.errands.listener(&inside, 8080, false).await.unwrap()).unwrap();
    let serve = tokio::spawn(async move {
        while let Ok((mut connection, _)) = app.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = connection.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    let say = async |stream: &mut TlsStream<TcpStream>, text: &str| {
        stream.write_all(text.as_bytes()).await?;
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).await?;
        assert_eq!(heard, text.as_bytes());
        std::io::Result::Ok(())
    };
    let mut old = connect(61001, &authority).await.unwrap();
    say(&mut old, "before").await.unwrap();
    let mut between = connect(61443, &others).await.unwrap();
    assert_eq!(
        between.get_ref().1.alpn_protocol(),
        None,
        "other containers are offered nothing to choose from"
    );
    say(&mut between, "from a container").await.unwrap();
    // All its places are taken: the next one waits, and is served when one is free.
    let mut third = Box::pin(connect(61001, &authority));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut third).await.is_err());
    drop(between);
    drop(third.await.unwrap());

    edge.show_routers(&others.issue(NAME), Duration::from_secs(3600)).unwrap();
    say(&mut old, "after its certificate was replaced").await.unwrap();
    let mut new = connect(61001, &others).await.unwrap();
    say(&mut new, "with the new one").await.unwrap();
    drop(new);

    stop.cancel();
    let refused = async {
        while connect(61001, &others).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.expect("nobody is taken in any more");
    say(&mut old, "while it stops").await.unwrap();
    edge.close(Duration::from_millis(100)).await;
    assert!(say(&mut old, "after the end").await.is_err());
    serve.abort();

    // Another life: the same ports, at once.
    let again = open(CancellationToken::new()).await.unwrap();
    let mut stream = connect(61001, &authority).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    drop(again);
}

#[tokio::test]
async fn a_container_with_two_addresses_is_served_at_both() {
    let Some(container) = Container::start("a_container_with_two_addresses_is_served_at_both") else {
        return;
    };
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        println!("SKIPPED a_container_with_two_addresses_is_served_at_both: this kernel has no IPv6");
        return;
    }
    let authority = authority();
    let edges = Edges::new(&ContainerProxy::default(), Errands::start().unwrap()).unwrap();
    let issued = authority.issue(NAME);
    let shown = Shown { to_routers: &issued, to_containers: &issued };
    let inside = Arc::new(Namespace::open(container.at()).unwrap());
    let app_ip = [127, 0, 0, 1].into();
    let connect = async |to: IpAddr| {
        let socket = edges.errands.stream(&inside, to).await.unwrap();
        let stream = tokio::net::TcpSocket::from_std_stream(socket).connect((to, 61001).into()).await?;
        let mut stream = tls(stream, authority.client(None, &[&rustls::version::TLS13])).await?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await?;
        std::io::Result::Ok(heard)
    };
    let app = TcpListener::from_std(edges.errands.listener(&inside, 8080, false).await.unwrap()).unwrap();
    let serve = tokio::spawn(async move {
        while let Ok((mut connection, _)) = app.accept().await {
            connection.write_all(b"hello").await.unwrap();
        }
    });
    let fronts = [Front { app_port: 8080, port: 61001 }];
    for (has_ipv6, by_ipv6) in [(true, Some(&b"hello"[..])), (false, None)] {
        let place = Place { network: container.at(), app: app_ip, has_ipv6 };
        let edge = edges.open("h", place, &fronts, shown, CancellationToken::new()).await.unwrap();
        assert_eq!(connect(app_ip).await.unwrap(), b"hello");
        let met = connect(std::net::Ipv6Addr::LOCALHOST.into()).await;
        assert_eq!(met.as_deref().ok(), by_ipv6, "{has_ipv6}: {met:?}");
        edge.close(Duration::from_secs(10)).await;
    }
    serve.abort();
}
