//! Tables of texts and the places they mean.

use super::*;

/// `KIND USER:PASSWORD@HOST/DATABASE TRUST`.
fn picture(location: &Location) -> String {
    let (kind, server) = match location {
        Location::Sqlite(path) => return format!("sqlite {}", path.display()),
        Location::Postgres(server) => ("postgres", server),
        Location::Mysql(server) => ("mysql", server),
    };
    let Server { host, user, password, database, tls, .. } = server;
    let password = password.as_deref().unwrap_or("-");
    let ca = |ca: &Option<PathBuf>| ca.as_ref().map(|ca| ca.display().to_string()).unwrap_or("-".into());
    let trust = match &tls.trust {
        Trust::Off => "off".into(),
        Trust::Prefer => "prefer".into(),
        Trust::Any => "any".into(),
        Trust::Verified { ca: file, host: true } => format!("host:{}", ca(file)),
        Trust::Verified { ca: file, host: false } => format!("ca:{}", ca(file)),
    };
    let identity = tls.identity.iter().map(|(cert, key)| format!(" {}+{}", cert.display(), key.display()));
    format!("{kind} {user} {password} {host} {database} {trust}{}", identity.collect::<String>())
}

#[test]
fn connection_strings_of_deployments_are_understood() {
    let ca = Path::new("/ca");
    for (driver, text, ca, verifies, expected) in [
        ("mysql", "u:p@tcp(db:3307)/diego", None, false, "mysql u p db:3307 diego off"),
        ("mysql", "u:p:a/b@c@tcp(db)/diego?parseTime=true", None, true, "mysql u p:a/b@c db:3306 diego off"),
        ("mysql", "u@tcp([::1]:3)/a%20b", None, false, "mysql u - [::1]:3 a b off"),
        ("mysql", "u:@/diego?tls=true", None, false, "mysql u  127.0.0.1:3306 diego host:-"),
        ("mysql", "u:p@tcp(db)/d?tls=skip-verify", None, false, "mysql u p db:3306 d any"),
        ("mysql", "u:p@tcp(db)/d?a=b&tls=preferred", None, false, "mysql u p db:3306 d prefer"),
        ("mysql", "u:p@unix(/run/my.sock)/d", None, false, "mysql u p /run/my.sock d off"),
        ("mysql", "u:p@tcp(db)/d", Some(ca), true, "mysql u p db:3306 d host:/ca"),
        ("mysql", "u:p@tcp(db)/d?tls=false", Some(ca), false, "mysql u p db:3306 d ca:/ca"),
        ("postgres", "postgres://u:p%40@db:5433/d", None, false, "postgres u p@ db:5433 d prefer"),
        ("postgres", "postgresql://u@db/d?sslmode=disable", None, true, "postgres u - db:5432 d off"),
        ("postgres", "postgres://u:p@db/d?sslmode=require", None, false, "postgres u p db:5432 d any"),
        (
            "postgres",
            "postgres://u:p@db/d?sslmode=disable",
            Some(ca),
            true,
            "postgres u p db:5432 d host:/ca",
        ),
        ("postgres", "postgres://u:p@db/d", Some(ca), false, "postgres u p db:5432 d ca:/ca"),
        (
            "postgres",
            "postgres://u@db/d?sslmode=verify-full&sslrootcert=/r&sslcert=/c&sslkey=/k",
            None,
            false,
            "postgres u - db:5432 d host:/r /c+/k",
        ),
        ("postgres", "postgres://u@/d?host=/run/pg", None, false, "postgres u - /run/pg d prefer"),
        ("postgres", "user=u host=db port=7 dbname=d", None, false, "postgres u - db:7 d prefer"),
        (
            "postgres",
            r"port=7 password='a \'b\\' user=u  dbname=d host=db sslmode=require",
            None,
            false,
            r"postgres u a 'b\ db:7 d any",
        ),
    ] {
        let location = Location::from_upstream(driver, text, ca, verifies);
        assert_eq!(location.as_ref().map(picture), Ok(expected.into()), "{text}");
        let location = location.unwrap();
        assert_eq!(location.to_secret_url().parse(), Ok(location), "{text}");
    }
}

#[test]
fn what_names_no_database_is_refused_and_no_password_told() {
    for (driver, text, expected) in [
        ("oracle", "", "invalid-driver-name: \"oracle\" is neither mysql nor postgres"),
        ("mysql", "secret", "invalid-db-connection-string: it has no / before the database's name"),
        ("mysql", "u:secret@tcp(db/d", "invalid-db-connection-string: the address has no ) at its end"),
        (
            "mysql",
            "u:secret@udp(db)/d",
            "invalid-db-connection-string: the network \"udp\" is neither tcp nor unix",
        ),
        ("mysql", "u:secret@tcp(db)/", "invalid-db-connection-string: it names no database"),
        ("mysql", "u:secret@tcp(db)/d?tls=custom", "invalid-db-connection-string: tls=custom is unknown"),
        ("postgres", "postgres://u:secret@db:x/d", "invalid-db-connection-string: \"x\" is no port"),
        (
            "postgres",
            "postgres:u:secret@db/d",
            "invalid-db-connection-string: a URL has // behind its scheme",
        ),
        ("postgres", "postgres://u:secret@db", "invalid-db-connection-string: it names no database"),
        ("postgres", "postgres://a,b/d", "invalid-db-connection-string: several hosts are not supported"),
        ("postgres", "password=secret host", "invalid-db-connection-string: a keyword has no ="),
        ("postgres", "password='secret", "invalid-db-connection-string: a quoted value has no end"),
        (
            "postgres",
            "postgres://u@db/d?sslmode=maybe",
            "invalid-db-connection-string: sslmode \"maybe\" is unknown",
        ),
        (
            "postgres",
            "postgres://u@db/d?sslcert=/c",
            "invalid-db-connection-string: a client's certificate and its key go together",
        ),
    ] {
        let refused = Location::from_upstream(driver, text, None, false).unwrap_err().to_string();
        assert_eq!(refused, expected, "{text}");
    }
}

#[test]
fn a_flag_names_a_file_or_a_server() {
    for (text, expected) in [
        ("/var/lib/diego/bbs.sqlite", "sqlite /var/lib/diego/bbs.sqlite"),
        ("sqlite:bbs.sqlite", "sqlite bbs.sqlite"),
        ("mysql://u:p@db/d", "mysql u p db:3306 d prefer"),
        ("postgres://u:p@[::1]:5/d", "postgres u p [::1]:5 d prefer"),
        ("postgres://%2Frun%2Fpg/d", "postgres  - /run/pg d prefer"),
    ] {
        assert_eq!(text.parse::<Location>().as_ref().map(picture), Ok(expected.into()), "{text}");
    }
}

#[test]
fn the_password_is_in_no_message() {
    let location: Location = "postgres://u:secret@db/d".parse().unwrap();
    assert_eq!(location.to_string(), "the PostgreSQL database d at db:5432");
    assert!(!format!("{location:?}").contains("secret"));
}
