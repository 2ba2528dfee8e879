//! Servers of PostgreSQL and MariaDB of our own: each in a directory that goes with it, reached by a socket in there, and
//! ended by a shell that waits for the end of this process, however that comes.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use bbs::{DatabaseHost, DatabaseServer, DatabaseTls, DatabaseTrust, Location};
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)]
pub enum Kind {
    Sqlite,
    Postgres,
    Mysql,
}

/// PostgreSQL refuses to be root.
const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(60);
/// `$1` ends the server, the rest is its command line; the directory is the working directory.
const KEEPER: &str = r#"end=$1; shift
"$@" >>log 2>&1 </dev/null & server=$!
echo $server
cat >/dev/null
kill -$end $server 2>/dev/null; wait $server
[ -e kept ] || rm -rf "$PWD""#;

pub struct Server {
    kind: Kind,
    directory: PathBuf,
    /// Where it is reached by TLS, too.
    port: Option<u16>,
    keeper: Mutex<Option<Child>>,
    pid: Mutex<u32>,
    databases: AtomicU32,
}

/// PostgreSQL refuses keys that others may read.
#[allow(dead_code)]
pub fn write_for_server(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The one that the stories of this program share; `None` says why there is none.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    SHARED.get_or_init(|| Server::start(crate::DATABASE)).as_ref()
}

impl Server {
    /// `None` for SQLite, and for what is not installed.
    pub fn start(kind: Kind) -> Option<Server> {
        Server::start_with(kind, None, |_| {})
    }

    /// `prepare` writes into the server's directory what [`Server::begin`] names.
    pub fn start_with(kind: Kind, port: Option<u16>, prepare: impl FnOnce(&Path)) -> Option<Server> {
        let wanted = match kind {
            Kind::Sqlite => return None,
            Kind::Postgres => postgres_program("initdb").filter(|path| path.exists()),
            Kind::Mysql => Some(PathBuf::from("/usr/sbin/mariadbd")).filter(|path| path.exists()),
        };
        if wanted.is_none() {
            println!("SKIPPED stories on {kind:?}: its server is not installed; they run on SQLite");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("diego-db-").tempdir().unwrap().keep();
        if is_root() {
            chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let server = Server {
            kind,
            directory,
            port,
            keeper: Mutex::default(),
            pid: Mutex::default(),
            databases: AtomicU32::new(0),
        };
        server.install();
        prepare(&server.directory);
        server.begin();
        Some(server)
    }

    fn install(&self) {
        let data = self.directory.join("data");
        let mut command = match self.kind {
            Kind::Postgres => {
                let mut command = unprivileged(&postgres_program("initdb").unwrap());
                command.arg("-D").arg(&data);
                command.args(["-U", "diego", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
                command
            }
            _ => {
                let mut command = unprivileged(Path::new("/usr/bin/mariadb-install-db"));
                command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
                command.arg(format!("--datadir={}", data.display()));
                command
            }
        };
        // In the common one those of several installations meet.
        command.env("TMPDIR", &self.directory);
        let done = command.current_dir(&self.directory).output().unwrap();
        if !done.status.success() {
            std::fs::remove_dir_all(&self.directory).unwrap();
            let [said, told] =
                [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            panic!("cannot make a database of {:?}: {said}{told}", self.kind);
        }
    }

    /// Starts the server, or starts it again.
    pub fn begin(&self) {
        let data = self.directory.join("data");
        let socket = self.directory.display();
        let (end, program, mut arguments) = match self.kind {
            Kind::Postgres => (
                "QUIT",
                postgres_program("postgres").unwrap(),
                vec![
                    format!("-D{}", data.display()),
                    format!("-cunix_socket_directories={socket}"),
                    "-cfsync=off".into(),
                    "-cshared_buffers=32MB".into(),
                ],
            ),
            _ => (
                "KILL",
                PathBuf::from("/usr/sbin/mariadbd"),
                vec![
                    "--no-defaults".into(),
                    format!("--datadir={}", data.display()),
                    format!("--socket={socket}/socket"),
                    format!("--pid-file={socket}/pid"),
                    // Whatever is written survives the process, which is all that these tests end.
                    "--innodb-flush-log-at-trx-commit=2".into(),
                    "--innodb-buffer-pool-size=32M".into(),
                ],
            ),
        };
        arguments.extend(self.network());
        let mut keeper = unprivileged(Path::new("sh"))
            .args(["-c", KEEPER, "sh", end])
            .env("TMPDIR", &self.directory)
            .stderr(Stdio::null())
            .arg(program)
            .args(arguments)
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        *self.pid.lock().unwrap() = line.trim().parse().unwrap();
        *self.keeper.lock().unwrap() = Some(keeper);
    }

    /// Nothing but its socket, or TLS with the certificates in its directory.
    fn network(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
        match (self.kind, self.port) {
            (Kind::Postgres, None) => vec!["-clisten_addresses=".into()],
            (Kind::Postgres, Some(port)) => vec![
                "-clisten_addresses=127.0.0.1".into(),
                format!("-cport={port}"),
                "-cssl=on".into(),
                format!("-cssl_ca_file={ca}"),
                format!("-cssl_cert_file={cert}"),
                format!("-cssl_key_file={key}"),
                format!("-chba_file={}", file("hba.conf")),
            ],
            (_, None) => vec!["--skip-networking".into()],
            (_, Some(port)) => vec![
                "--bind-address=127.0.0.1".into(),
                format!("--port={port}"),
                "--require-secure-transport=ON".into(),
                format!("--ssl-ca={ca}"),
                format!("--ssl-cert={cert}"),
                format!("--ssl-key={key}"),
            ],
        }
    }

    #[allow(dead_code)]
    /// SIGKILL, in the middle of whatever it does. It can be begun again.
    pub fn kill(&self) {
        std::fs::write(self.directory.join("kept"), "").unwrap();
        self.signal("KILL");
        self.end();
        std::fs::remove_file(self.directory.join("kept")).unwrap();
    }

    #[allow(dead_code)]
    /// `STOP` makes it a server that does not answer, `CONT` ends that.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid.lock().unwrap().to_string();
        // PostgreSQL's connections are processes of their own.
        let mut pids = vec![pid.clone()];
        if self.kind == Kind::Postgres {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            pids.extend(children.split_whitespace().map(str::to_owned));
        }
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).args(&pids).stderr(Stdio::null()).status().unwrap();
        // A thread that is at work on another processor stops a moment later.
        let deadline = Instant::now() + PATIENCE;
        while signal == "STOP" && !pids.iter().all(|pid| is_stopped(pid)) {
            assert!(Instant::now() < deadline, "{:?} does not stop", self.kind);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(&self) {
        let Some(mut keeper) = self.keeper.lock().unwrap().take() else { return };
        drop(keeper.stdin.take());
        keeper.wait().unwrap();
    }

    #[allow(dead_code)]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn server(&self, database: &str) -> DatabaseServer {
        let (host, user) = match self.kind {
            Kind::Postgres => (self.directory.clone(), "diego"),
            _ => (self.directory.join("socket"), "root"),
        };
        DatabaseServer {
            host: DatabaseHost::Socket(host),
            user: user.into(),
            password: None,
            database: database.into(),
            tls: DatabaseTls { trust: DatabaseTrust::Off, identity: None },
            connections_max: None,
        }
    }

    /// A new and empty database.
    pub async fn database(&self) -> Location {
        let name = format!("story_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute(None, &format!("CREATE DATABASE {name}")).await;
        match self.kind {
            Kind::Postgres => Location::Postgres(self.server(&name)),
            _ => Location::Mysql(self.server(&name)),
        }
    }

    #[allow(dead_code)]
    pub async fn end_connections(&self, location: &Location) {
        if self.kind == Kind::Postgres {
            let end =
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'diego'";
            return self.execute(None, end).await;
        }
        let Location::Mysql(server) = location else { return };
        let mut connection = MySqlConnectOptions::new()
            .socket(self.directory.join("socket"))
            .username("root")
            .connect()
            .await
            .unwrap();
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = ?")
                .bind(&server.database)
                .fetch_all(&mut connection)
                .await
                .unwrap();
        for id in ids {
            connection.execute(AssertSqlSafe(format!("KILL {id}"))).await.unwrap();
        }
    }

    /// As an administrator would, as soon as the server answers.
    pub async fn execute(&self, location: Option<&Location>, statement: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_execute(location, statement).await {
                Ok(()) => return,
                Err(error) if error.as_database_error().is_none() || is_starting(&error) => {
                    let log = || std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                    assert!(Instant::now() < deadline, "{:?} is not there: {error}\n{}", self.kind, log());
                }
                Err(error) => panic!("{statement}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_execute(&self, location: Option<&Location>, statement: &str) -> Result<(), sqlx::Error> {
        let name = match location {
            Some(Location::Postgres(server) | Location::Mysql(server)) => Some(server.database.as_str()),
            _ => None,
        };
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_string()));
        if self.kind == Kind::Postgres {
            let options = PgConnectOptions::new_without_pgpass().socket(&self.directory).username("diego");
            let options = options.port(self.port.unwrap_or(5432));
            let mut connection = options.database(name.unwrap_or("postgres")).connect().await?;
            connection.execute(statement).await?;
            return connection.close().await;
        }
        let options = MySqlConnectOptions::new().socket(self.directory.join("socket")).username("root");
        let options = options.ssl_mode(MySqlSslMode::Disabled);
        let mut connection = options.database(name.unwrap_or("mysql")).connect().await?;
        connection.execute(statement).await?;
        connection.close().await
    }
}

/// All its threads, or it is gone.
#[allow(dead_code)]
fn is_stopped(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    // The name before it may have anything in it.
    states.all(|stat| stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T')))
}

fn is_starting(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "57P03")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
        // It is there still if the server was killed and not begun again.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C");
    command
}

/// Debian keeps them by version, not on the path.
fn postgres_program(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut paths: Vec<PathBuf> =
        versions.flatten().map(|version| version.path().join("bin").join(name)).collect();
    paths.sort();
    paths.pop()
}
