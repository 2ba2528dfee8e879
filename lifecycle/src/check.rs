//! One health check from inside a container: is the port open, or does the URI answer 200? And the modes in which the
//! `healthcheck` program repeats it. Messages and exit codes are those the platform shows to developers.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    flags::{FlagSet, Parsed, format_duration},
    interfaces::ipv4_addresses,
};

/// The body is read so that the app sees no broken connection, but no more than this.
const BODY_BYTES_MAX: usize = 1024 * 1024;
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;
const REDIRECTS_MAX: usize = 10;

/// What to check.
#[derive(Clone, Debug)]
pub struct Check {
    pub network: String,
    pub uri: String,
    pub port: String,
    pub timeout: Duration,
}

/// Why a check failed: the exit code and the message developers see.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

/// When to check again, and what ends the program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Once,
    /// Until it passes, or for this long (zero: for ever).
    Startup {
        every: Duration,
        at_most: Duration,
    },
    /// Until it fails.
    Liveness {
        every: Duration,
    },
    Readiness {
        every: Duration,
    },
    /// Until it passes.
    UntilReady {
        every: Duration,
    },
}

pub fn flags() -> FlagSet {
    FlagSet::new("healthcheck")
        .text("network", "tcp", "network type to dial with")
        .text("uri", "", "uri to healthcheck")
        .text("port", "8080", "port to healthcheck")
        .duration("timeout", Duration::from_secs(1), "dial timeout")
        .duration("startup-interval", Duration::ZERO, "check at this interval until the check passes")
        .duration(
            "startup-timeout",
            Duration::from_secs(60),
            "in startup mode, fail when the check has not passed after this time",
        )
        .duration("liveness-interval", Duration::ZERO, "check at this interval until the check fails")
        .duration("readiness-interval", Duration::ZERO, "check at this interval until the check fails")
        .duration("until-ready-interval", Duration::ZERO, "check at this interval until the check passes")
}

/// The check and the mode of a command line. Where several modes are asked for, the first of startup, liveness,
/// readiness, until-ready counts.
pub fn configure(flags: &Parsed) -> (Check, Mode) {
    let check = Check {
        network: flags.text("network").to_owned(),
        uri: flags.text("uri").to_owned(),
        port: flags.text("port").to_owned(),
        timeout: flags.duration("timeout"),
    };
    let interval = |name| Some(flags.duration(name)).filter(|every| !every.is_zero());
    let mode = if let Some(every) = interval("startup-interval") {
        Mode::Startup { every, at_most: flags.duration("startup-timeout") }
    } else if let Some(every) = interval("liveness-interval") {
        Mode::Liveness { every }
    } else if let Some(every) = interval("readiness-interval") {
        Mode::Readiness { every }
    } else if let Some(every) = interval("until-ready-interval") {
        Mode::UntilReady { every }
    } else {
        Mode::Once
    };
    (check, mode)
}

/// The whole program after its flags are read.
pub fn run(check: &Check, mode: Mode) -> ExitCode {
    let address = match ipv4_addresses() {
        Ok(addresses) => addresses.into_iter().find(|address| !address.is_loopback()),
        Err(error) => {
            eprintln!("Failed to get interfaces: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(address) = address else {
        return fail(&Failure { code: 3, message: "failure to find suitable interface".to_owned() });
    };
    match mode {
        Mode::Once => match check.run(address) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(&failure),
        },
        Mode::Startup { every, at_most } => startup(check, address, every, at_most),
        Mode::Liveness { every } => until_failure(check, address, every, "Liveness"),
        Mode::Readiness { every } => until_failure(check, address, every, "Readiness"),
        Mode::UntilReady { every } => {
            while check.run(address).is_err() {
                std::thread::sleep(every);
            }
            ExitCode::SUCCESS
        }
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("{}", failure.message);
    ExitCode::from(failure.code)
}

fn until_failure(check: &Check, address: Ipv4Addr, every: Duration, what: &str) -> ExitCode {
    loop {
        if let Err(failure) = check.run(address) {
            eprint!("{what} check unsuccessful: ");
            return fail(&failure);
        }
        std::thread::sleep(every);
    }
}

/// Each attempt runs in a thread of its own, so that the whole ends on time even while an attempt hangs.
fn startup(check: &Check, address: Ipv4Addr, every: Duration, at_most: Duration) -> ExitCode {
    let started = Instant::now();
    let left = |now: Instant| match at_most.is_zero() {
        true => Duration::MAX,
        false => at_most.saturating_sub(now - started),
    };
    let mut last = check.timed_out(address);
    for attempt in 1u32.. {
        let (sender, receiver) = mpsc::channel();
        let attempted = check.clone();
        std::thread::spawn(move || sender.send(attempted.run(address)));
        match receiver.recv_timeout(left(Instant::now())) {
            Ok(Ok(())) => return ExitCode::SUCCESS,
            Ok(Err(failure)) => last = failure,
            Err(_) => return startup_failed(at_most, attempt, &last),
        }
        let next = every.saturating_mul(attempt);
        let pause = next.saturating_sub(started.elapsed());
        std::thread::sleep(pause.min(left(Instant::now())));
        if left(Instant::now()).is_zero() {
            return startup_failed(at_most, attempt, &last);
        }
    }
    ExitCode::FAILURE
}

fn startup_failed(at_most: Duration, attempts: u32, last: &Failure) -> ExitCode {
    eprint!(
        "Timed out after {} ({attempts} attempts) waiting for startup check to succeed: ",
        format_duration(at_most)
    );
    fail(last)
}

impl Check {
    /// Checks once.
    pub fn run(&self, address: Ipv4Addr) -> Result<(), Failure> {
        if self.uri.is_empty() { self.port(address) } else { self.http(address) }
    }

    fn port(&self, address: Ipv4Addr) -> Result<(), Failure> {
        self.dial(address).map(drop).map_err(|error| {
            if timed_out(&error) {
                return self.timed_out(address);
            }
            Failure {
                code: 4,
                message: format!(
                    "failed to make TCP connection to {address}:{}: {}",
                    self.port,
                    self.dial_error(address, &error)
                ),
            }
        })
    }

    fn http(&self, address: Ipv4Addr) -> Result<(), Failure> {
        let started = Instant::now();
        let failure = |code, why: String| Failure {
            code,
            message: format!("failed to make HTTP request to '{}' on port {}: {why}", self.uri, self.port),
        };
        match self.get(address, started + self.timeout) {
            Ok(200) => Ok(()),
            Ok(status) => Err(failure(
                6,
                format!("received status code {status} in {}ms", started.elapsed().as_millis()),
            )),
            Err(error) if timed_out(&error) => Err(self.timed_out(address)),
            Err(_) => Err(failure(5, "connection refused".to_owned())),
        }
    }

    /// The failure that says the timeout has passed.
    fn timed_out(&self, address: Ipv4Addr) -> Failure {
        let seconds = self.timeout.as_secs_f64();
        if self.uri.is_empty() {
            Failure {
                code: 64,
                message: format!(
                    "failed to make TCP connection to {address}:{}: timed out after {seconds:.2} seconds",
                    self.port
                ),
            }
        } else {
            Failure {
                code: 65,
                message: format!(
                    "failed to make HTTP request to '{}' on port {}: timed out after {seconds:.2} seconds",
                    self.uri, self.port
                ),
            }
        }
    }

    fn dial(&self, address: Ipv4Addr) -> io::Result<TcpStream> {
        if !matches!(self.network.as_str(), "tcp" | "tcp4") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "unknown network"));
        }
        let port =
            self.port.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "invalid port"))?;
        connect(address, port, self.timeout)
    }

    fn dial_error(&self, address: Ipv4Addr, error: &io::Error) -> String {
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            _ => error.to_string(),
        };
        format!("dial {} {address}:{}: {why}", self.network, self.port)
    }

    /// The status of a GET, following redirects to plain HTTP as a browser-like client would.
    fn get(&self, address: Ipv4Addr, deadline: Instant) -> io::Result<u16> {
        let mut stream = self.dial(address)?;
        let mut host = format!("{address}:{}", self.port);
        let mut path = self.uri.clone();
        for _ in 0..REDIRECTS_MAX {
            let response = exchange(&mut stream, &host, &path, deadline)?;
            let Some(location) = response.redirect() else {
                return Ok(response.status);
            };
            let (next_host, next_path) = resolve(&host, &location)?;
            host = next_host;
            path = next_path;
            stream = connect_to(&host, deadline)?;
        }
        Err(io::Error::other("too many redirects"))
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn connect(address: Ipv4Addr, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    // The system refuses a timeout of zero; one that short is over before it begins.
    let timeout = timeout.max(Duration::from_micros(1));
    TcpStream::connect_timeout(&SocketAddr::from((address, port)), timeout)
}

fn connect_to(host: &str, deadline: Instant) -> io::Result<TcpStream> {
    use std::net::ToSocketAddrs;
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => format!("{host}:80"),
    };
    let address = with_port.to_socket_addrs()?.next().ok_or(io::ErrorKind::HostUnreachable)?;
    TcpStream::connect_timeout(&address, left(deadline)?)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

struct Response {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn redirect(&self) -> Option<String> {
        matches!(self.status, 301 | 302 | 303 | 307 | 308)
            .then(|| self.header("location").map(str::to_owned))
            .flatten()
    }
}

/// The host and path a `Location` leads to. Another scheme cannot be followed.
fn resolve(host: &str, location: &str) -> io::Result<(String, String)> {
    if let Some(absolute) = location.strip_prefix("http://") {
        let slash = absolute.find('/').unwrap_or(absolute.len());
        let path = match &absolute[slash..] {
            "" => "/",
            path => path,
        };
        return Ok((absolute[..slash].to_owned(), path.to_owned()));
    }
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok((host.to_owned(), location.to_owned()));
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("cannot follow a redirect to {location:?}")))
}

fn exchange(stream: &mut TcpStream, host: &str, path: &str, deadline: Instant) -> io::Result<Response> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let request = format!(
        "GET {slash}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: diego-healthcheck\r\n\
         X-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"
    );
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes())?;
    let mut received = Vec::new();
    let (response, body) = loop {
        if let Some((response, length)) = read_head(&received)? {
            received.drain(..length);
            // An interim answer (100 Continue) is followed by the real one.
            if !(100..200).contains(&response.status) {
                break (response, received);
            }
        } else if receive(stream, &mut received, deadline)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        } else if received.len() > RESPONSE_HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    drain(stream, &response, body, deadline);
    Ok(response)
}

fn receive(stream: &mut TcpStream, into: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    let mut piece = [0; 8 * 1024];
    stream.set_read_timeout(Some(left(deadline)?))?;
    let length = stream.read(&mut piece)?;
    into.extend_from_slice(&piece[..length]);
    Ok(length)
}

/// The status line and headers, and how many bytes they take; `None` while they are not whole.
fn read_head(received: &[u8]) -> io::Result<Option<(Response, usize)>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&received[..end]);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .filter(|line| line.starts_with("HTTP/"))
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Ok(Some((Response { status, headers }, end + 4)))
}

/// Reads the rest of the answer. What goes wrong now changes nothing: the app has answered.
fn drain(stream: &mut TcpStream, response: &Response, mut body: Vec<u8>, deadline: Instant) {
    let length = response
        .header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(BODY_BYTES_MAX)
        .min(BODY_BYTES_MAX);
    let chunked = response.header("transfer-encoding").is_some();
    while body.len() < length && !(chunked && body.ends_with(b"0\r\n\r\n")) {
        match receive(stream, &mut body, deadline) {
            Ok(received) if received > 0 => {}
            _ => return,
        }
    }
}
