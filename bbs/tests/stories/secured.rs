//! A BBS and a Locket whose database is reached by TLS, and asks for passwords and for certificates.

use std::path::Path;
use std::time::Duration;

use bbs::locket::Locket;
use bbs::{DatabaseHost, DatabaseServer, DatabaseTls, DatabaseTrust, Location};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_util::sync::CancellationToken;

use crate::servers::{Kind, Server, write_for_server};
use crate::world::{World, lrp};

const PASSWORD: &str = "p@ss w:rd/é";
/// Who comes from elsewhere needs TLS and a password; `shown` a certificate, too.
const HBA: &str = "local all all trust\nhostssl all shown 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n\
                   hostssl all app 127.0.0.1/32 scram-sha-256\n";
const DATABASE: &str = "secured";

/// An authority with a certificate for 127.0.0.1, which is no other name's, and one for a client.
fn write_certificates(directory: &Path) {
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        write_for_server(&directory.join(name), &certificate.pem());
        Issuer::new(params, key)
    };
    authority("other.pem");
    let ca = authority("ca.pem");
    for (name, host) in [("server", "127.0.0.1"), ("client", "bbs")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_string()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &ca).unwrap();
        write_for_server(&directory.join(format!("{name}.pem")), &certificate.pem());
        write_for_server(&directory.join(format!("{name}.key")), &key.serialize_pem());
    }
    write_for_server(&directory.join("hba.conf"), HBA);
}

async fn secured() -> Option<(Server, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start_with(crate::DATABASE, Some(port), write_certificates)?;
    let statements = match crate::DATABASE {
        Kind::Postgres => vec![
            format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"),
            format!("CREATE ROLE shown LOGIN PASSWORD '{PASSWORD}' IN ROLE app"),
            format!("CREATE DATABASE {DATABASE}"),
            "ALTER ROLE app SUPERUSER; ALTER ROLE shown SUPERUSER".into(),
        ],
        _ => vec![
            format!("CREATE DATABASE {DATABASE}"),
            format!("CREATE USER app@'%' IDENTIFIED BY '{PASSWORD}'"),
            format!("CREATE USER shown@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE X509"),
            format!("GRANT ALL ON {DATABASE}.* TO app@'%'"),
            format!("GRANT ALL ON {DATABASE}.* TO shown@'%'"),
        ],
    };
    for statement in statements {
        server.execute(None, &statement).await;
    }
    Some((server, port))
}

fn place(host: &str, port: u16, user: &str, trust: DatabaseTrust) -> DatabaseServer {
    DatabaseServer {
        host: DatabaseHost::Tcp { name: host.into(), port },
        user: user.into(),
        password: Some(PASSWORD.into()),
        database: DATABASE.into(),
        tls: DatabaseTls { trust, identity: None },
        connections_max: None,
    }
}

fn location(server: DatabaseServer) -> Location {
    match crate::DATABASE {
        Kind::Postgres => Location::Postgres(server),
        _ => Location::Mysql(server),
    }
}

/// What a BBS and a Locket say that do not start.
async fn refused(server: DatabaseServer) -> [String; 2] {
    let location = location(server);
    let world = World::idle(Duration::from_secs(1), location.clone());
    let (listen, _) = diego_base::serve::Listen::loopback().unwrap();
    let bbs = bbs::run(world.config(listen, &location), CancellationToken::new()).await.unwrap_err();
    let locket = Locket::open(Some(location), CancellationToken::new()).await.map(drop).unwrap_err();
    [words(&bbs), words(&locket)]
}

fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}

#[tokio::test]
async fn a_database_is_reached_by_tls_and_believed_as_far_as_its_certificate_is() {
    let Some((server, port)) = secured().await else { return };
    let file = |name: &str| server.directory().join(name);
    let verified = |ca: &str, host: bool| DatabaseTrust::Verified { ca: Some(file(ca)), host };
    let shown = DatabaseServer {
        tls: DatabaseTls {
            trust: verified("ca.pem", true),
            identity: Some((file("client.pem"), file("client.key"))),
        },
        ..place("127.0.0.1", port, "shown", DatabaseTrust::Off)
    };
    let believed = [
        place("127.0.0.1", port, "app", DatabaseTrust::Any),
        place("127.0.0.1", port, "app", DatabaseTrust::Prefer),
        place("127.0.0.1", port, "app", verified("ca.pem", true)),
        place("localhost", port, "app", verified("ca.pem", false)),
        shown.clone(),
    ];
    for (number, server) in believed.into_iter().enumerate() {
        println!("{server:?}");
        let mut world = World::on(location(server.clone())).await;
        world.bbs().desire_lrp(&lrp(&format!("lrp-{number}"), 1)).await.unwrap();
        assert_eq!(world.lrps(&format!("lrp-{number}")).await.len(), 1);
        world.stop().await;
        Locket::open(Some(location(server)), CancellationToken::new()).await.map(drop).unwrap();
    }
    let strange = [
        (place("127.0.0.1", port, "app", verified("other.pem", true)), "certificate"),
        (place("127.0.0.1", port, "app", verified("other.pem", false)), "certificate"),
        (place("localhost", port, "app", verified("ca.pem", true)), "certificate"),
        (place("127.0.0.1", port, "app", verified("none.pem", true)), "cannot read "),
        (place("127.0.0.1", port, "app", DatabaseTrust::Off), ""),
        (place("127.0.0.1", port, "shown", verified("ca.pem", true)), ""),
        (
            DatabaseServer {
                password: Some("wrong-word".into()),
                ..place("127.0.0.1", port, "app", DatabaseTrust::Any)
            },
            "app",
        ),
    ];
    for (server, why) in strange {
        println!("{server:?}");
        for said in refused(server.clone()).await {
            assert!(said.contains(&format!("database {DATABASE} at ")), "{said}");
            assert!(said.contains(why), "{said}");
            assert!(!said.contains("wrong-word") && !said.contains(PASSWORD), "{said}");
        }
    }
}
