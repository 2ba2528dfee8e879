//! Who may fill the cache: push, delete, and have images pinned. Whoever reaches it may pull.
//!
//! ```text
//! from one of the networks, or over a unix socket ──▶ may write
//! an account's name and password with the request ──▶ may write
//! the same, shown at [`TOKEN_PATH`] for a token, and then that ──▶ may write
//! ```
//! The third is how `docker login` and `docker push` do it: such clients show what they have only to who asks for it with
//! the first answer of all, and one that asks for a password there could not be pulled from without one. So they are sent for a
//! token, which those without an account get as well; it opens what needs none.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use base64::Engine as _;

use crate::digest::Digest;
use crate::registry::Credentials;

pub const TOKEN_PATH: &str = "/v1/token";
/// From the answer; a client whose token is older asks again.
pub const TOKEN_LIFE: Duration = Duration::from_secs(300);
/// Of those without an account.
pub const NOBODYS_TOKEN: &str = "anonymous";
/// Given and still good; for more the oldest goes.
const TOKENS_MAX: usize = 4096;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who may write.
#[derive(Clone)]
pub struct Writers {
    /// Of passwords the digest, which is all that is needed.
    accounts: BTreeMap<String, Digest>,
    networks: Vec<Network>,
}

impl Default for Writers {
    /// Who is on this machine itself; containers are not, they have networks of their own.
    fn default() -> Writers {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let [v4, v6] = loopback;
        let networks = vec![Network { address: v4, prefix: 8 }, Network { address: v6, prefix: 128 }];
        Writers { accounts: BTreeMap::new(), networks }
    }
}

impl fmt::Debug for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.accounts.keys().collect();
        f.debug_struct("Writers").field("accounts", &names).field("networks", &self.networks).finish()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidAccounts {
    #[error("cannot read the accounts in {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("line {line} of the accounts in {} is not USER:PASSWORD", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("there is no account in {}", path.display())]
    None { path: PathBuf },
}

impl Writers {
    /// These networks alone.
    pub fn from_networks(networks: Vec<Network>) -> Writers {
        Writers { accounts: BTreeMap::new(), networks }
    }

    /// With the accounts of a file, `USER:PASSWORD` a line; `#` begins a line that says nothing.
    pub fn with_accounts(mut self, path: &Path) -> Result<Writers, InvalidAccounts> {
        let read = |source| InvalidAccounts::Read { path: path.into(), source };
        let length = std::fs::metadata(path).map_err(read)?.len();
        if length > FILE_BYTES_MAX {
            return Err(read(std::io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes"))));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once(':') {
                Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                    self.accounts.insert(user.into(), Digest::of(password.as_bytes()));
                }
                // Without the line itself: it may be a password.
                _ => return Err(InvalidAccounts::Line { path: path.into(), line: number + 1 }),
            }
        }
        match self.accounts.is_empty() {
            true => Err(InvalidAccounts::None { path: path.into() }),
            false => Ok(self),
        }
    }

    pub fn have_accounts(&self) -> bool {
        !self.accounts.is_empty()
    }

    /// Over a unix socket there is no address: who may connect is for its file to say.
    pub fn include(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|address| self.networks.iter().any(|network| network.contains(address)))
    }

    /// Digests are compared, so that how long it takes tells nothing of a password.
    fn know(&self, username: &str, password: &str) -> bool {
        self.accounts.get(username).is_some_and(|digest| *digest == Digest::of(password.as_bytes()))
    }
}

impl fmt::Display for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.networks.iter().map(Network::to_string).collect();
        match (self.accounts.len(), networks.is_empty()) {
            (0, true) => write!(f, "nobody"),
            (0, false) => write!(f, "who asks from {}", networks.join(", ")),
            (accounts, true) => write!(f, "{accounts} accounts"),
            (accounts, false) => {
                write!(f, "{accounts} accounts and whoever asks from {}", networks.join(", "))
            }
        }
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, or one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(u128::from(ours.to_bits()) << 96, u128::from(theirs.to_bits()) << 96, self.prefix)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), self.prefix),
            _ => false,
        }
    }
}

/// Whether the first bits of two addresses are.
fn same(one: u128, other: u128, bits: u8) -> bool {
    (one ^ other).leading_zeros() >= u32::from(bits)
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let invalid =
            || format!("'{text}' is no network: it must be an address, or one with a prefix as 10.0.0.0/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), str::parse).map_err(|_| invalid())?;
        (prefix <= most).then_some(Network { address, prefix }).ok_or_else(invalid)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What a client shows of itself.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    Password(String, String),
    Token(String),
}

impl Shown {
    fn of(headers: &HeaderMap) -> Shown {
        let value = headers.get("authorization").and_then(|value| value.to_str().ok());
        let Some((scheme, rest)) = value.and_then(|value| value.split_once(' ')) else {
            return Shown::Nothing;
        };
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => password(rest.trim()).unwrap_or(Shown::Nothing),
            "bearer" => Shown::Token(rest.trim().into()),
            _ => Shown::Nothing,
        }
    }
}

fn password(encoded: &str) -> Option<Shown> {
    let pair = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (username, password) = pair.split_once(':')?;
    // What some clients send when they have nothing.
    let shown = Shown::Password(username.into(), password.into());
    Some(if username.is_empty() { Shown::Nothing } else { shown })
}

/// Whether a request may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    May,
    /// With an account it could.
    MayWithAccount,
    Never,
}

/// The writers, and the tokens they were given.
#[derive(Debug, Default)]
pub struct Gate {
    pub writers: Writers,
    tokens: Mutex<HashMap<String, Instant>>,
}

impl Gate {
    pub fn new(writers: Writers) -> Gate {
        Gate { writers, tokens: Mutex::default() }
    }

    pub fn judge(&self, peer: Option<IpAddr>, headers: &HeaderMap, now: Instant) -> Verdict {
        let known = match Shown::of(headers) {
            Shown::Nothing => false,
            Shown::Password(username, password) => self.writers.know(&username, &password),
            Shown::Token(token) => self.is_good(&token, now),
        };
        match (self.writers.include(peer) || known, self.writers.have_accounts()) {
            (true, _) => Verdict::May,
            (false, true) => Verdict::MayWithAccount,
            (false, false) => Verdict::Never,
        }
    }

    /// Whether a request may read, which everybody may: but who has shown nothing is sent for a token first. Some clients
    /// cannot show what they have in the middle of a push, when they are asked for it for the first time.
    pub fn lets_read(&self, peer: Option<IpAddr>, headers: &HeaderMap, now: Instant) -> bool {
        if !self.writers.have_accounts() || self.writers.include(peer) {
            return true;
        }
        match Shown::of(headers) {
            Shown::Nothing => false,
            // For the registry behind us, perhaps.
            Shown::Password(..) => true,
            Shown::Token(token) => token == NOBODYS_TOKEN || self.is_good(&token, now),
        }
    }

    /// Whether who logs in is who he says.
    pub fn welcomes(&self, peer: Option<IpAddr>, headers: &HeaderMap, now: Instant) -> bool {
        match Shown::of(headers) {
            Shown::Password(..) => self.judge(peer, headers, now) != Verdict::MayWithAccount,
            _ => self.lets_read(peer, headers, now),
        }
    }

    fn is_good(&self, token: &str, now: Instant) -> bool {
        self.tokens().get(token).is_some_and(|until| now < *until)
    }

    /// For what a client shows; `None`: nobody is known by that, or what it means to do (`scopes`, as
    /// `repository:NAME:pull,push`) takes an account. Better here than later: some clients wait for ever when they are
    /// refused in the middle of a push.
    pub fn token(&self, headers: &HeaderMap, scopes: &[&str], now: Instant) -> Option<String> {
        let reads =
            |scope: &&str| scope.rsplit(':').next().unwrap_or_default().split(',').all(|act| act == "pull");
        match Shown::of(headers) {
            Shown::Nothing => return scopes.iter().all(reads).then(|| NOBODYS_TOKEN.into()),
            Shown::Password(username, password) if self.writers.know(&username, &password) => {}
            _ => return None,
        }
        let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let mut tokens = self.tokens();
        tokens.retain(|_, until| now < *until);
        if tokens.len() >= TOKENS_MAX
            && let Some(oldest) =
                tokens.iter().min_by_key(|(_, until)| **until).map(|(token, _)| token.clone())
        {
            tokens.remove(&oldest);
        }
        tokens.insert(token.clone(), now + TOKEN_LIFE);
        Some(token)
    }

    /// What a client sent for the registry behind us: never what opens this one.
    pub fn credentials_for_others(&self, headers: &HeaderMap) -> Option<Credentials> {
        match Shown::of(headers) {
            Shown::Password(username, password) if !self.writers.accounts.contains_key(&username) => {
                Credentials::given(&username, &password)
            }
            _ => None,
        }
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert("authorization", authorization.parse().unwrap());
        }
        headers
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }

    fn gate(networks: &str, accounts: &str) -> Gate {
        let networks = networks.split_whitespace().map(|network| network.parse().unwrap()).collect();
        let writers = Writers::from_networks(networks);
        if accounts.is_empty() {
            return Gate::new(writers);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), accounts).unwrap();
        Gate::new(writers.with_accounts(file.path()).unwrap())
    }

    #[test]
    fn who_may_write_is_told_by_network_or_account() {
        use Verdict::{May, MayWithAccount, Never};
        let now = Instant::now();
        for (networks, accounts, peer, shown, expected) in [
            ("127.0.0.0/8 ::1", "", "127.0.0.1", String::new(), May),
            ("127.0.0.0/8 ::1", "", "::1", String::new(), May),
            ("127.0.0.0/8 ::1", "", "10.0.0.1", String::new(), Never),
            ("127.0.0.0/8", "", "10.0.0.1", basic("stager:secret"), Never),
            ("10.0.0.0/8 fd00::/8", "", "10.255.0.1", String::new(), May),
            ("10.0.0.0/8 fd00::/8", "", "fd12::1", String::new(), May),
            ("10.0.0.0/8 fd00::/8", "", "11.0.0.1", String::new(), Never),
            ("10.0.0.0/8 fd00::/8", "", "127.0.0.1", String::new(), Never),
            ("0.0.0.0/0", "", "192.0.2.1", String::new(), May),
            ("", "stager:secret\n", "127.0.0.1", String::new(), MayWithAccount),
            ("", "stager:secret\n", "127.0.0.1", basic("stager:secret"), May),
            ("", "stager:secret\n", "127.0.0.1", basic("stager:wrong"), MayWithAccount),
            ("", "stager:secret\n", "127.0.0.1", basic("other:secret"), MayWithAccount),
            ("", "# who stages\n\na:b:c\n", "10.0.0.1", basic("a:b:c"), May),
            ("", "stager:secret\n", "127.0.0.1", "Bearer anonymous".into(), MayWithAccount),
            ("", "stager:secret\n", "127.0.0.1", "Bearer".into(), MayWithAccount),
            ("10.0.0.1", "stager:secret\n", "10.0.0.1", basic("stager:wrong"), May),
        ] {
            let gate = gate(networks, accounts);
            let verdict = gate.judge(Some(peer.parse().unwrap()), &headers(&shown), now);
            assert_eq!(verdict, expected, "{networks} {accounts} {peer} {shown}");
        }
        assert_eq!(gate("", "").judge(None, &headers(""), now), May, "over a unix socket");
    }

    #[test]
    fn a_token_is_good_for_its_time_and_nobodys_for_nothing() {
        let gate = gate("", "stager:secret\n");
        let (now, peer) = (Instant::now(), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let reads = |shown: &str, now| gate.lets_read(peer, &headers(shown), now);
        assert!(!reads("", now) && !gate.welcomes(peer, &headers(""), now));
        let pull = "repository:127.0.0.1_5000/app:pull";
        for (scopes, expected) in [
            (&[][..], Some(NOBODYS_TOKEN)),
            (&[pull][..], Some(NOBODYS_TOKEN)),
            (&[pull, "repository:app:pull,push"][..], None),
            (&["repository:app:*"][..], None),
            (&["repository:app:delete"][..], None),
        ] {
            assert_eq!(gate.token(&headers(""), scopes, now).as_deref(), expected, "{scopes:?}");
        }
        assert!(reads("Bearer anonymous", now) && gate.welcomes(peer, &headers("Bearer anonymous"), now));
        assert!(
            reads(&basic("stager:wrong"), now) && !gate.welcomes(peer, &headers(&basic("stager:wrong")), now)
        );
        assert_eq!(gate.token(&headers(&basic("stager:wrong")), &[pull], now), None);
        let token =
            gate.token(&headers(&basic("stager:secret")), &["repository:app:push,pull"], now).unwrap();
        let shown = headers(&format!("Bearer {token}"));
        assert_eq!(gate.judge(peer, &shown, now), Verdict::May);
        assert_eq!(gate.judge(peer, &shown, now + TOKEN_LIFE), Verdict::MayWithAccount);
        assert!(gate.lets_read(peer, &shown, now) && !gate.lets_read(peer, &shown, now + TOKEN_LIFE));
        for _ in 0..TOKENS_MAX + 10 {
            gate.token(&headers(&basic("stager:secret")), &[], now + Duration::from_secs(1)).unwrap();
        }
        assert_eq!(gate.tokens().len(), TOKENS_MAX);
        assert_eq!(gate.judge(peer, &shown, now), Verdict::MayWithAccount, "the oldest went");
    }

    #[test]
    fn what_opens_this_cache_is_shown_to_no_other_registry() {
        let gate = gate("", "stager:secret\n");
        let sent = |shown: &str| gate.credentials_for_others(&headers(shown)).is_some();
        assert!(sent(&basic("me:mine")));
        assert!(!sent(&basic("stager:secret")));
        assert!(!sent(&basic("stager:mistyped")));
        assert!(!sent("Bearer something") && !sent("") && !sent(&basic(":")));
    }

    #[test]
    fn what_is_no_network_or_no_account_is_refused_without_telling_it() {
        for text in ["", "10.0.0.0/33", "10.0.0.0/x", "::/129", "localhost", "10.0.0.0/8/8"] {
            assert!(text.parse::<Network>().unwrap_err().contains("is no network"), "{text}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [
            ("\n", "there is no account"),
            ("a:b\nsecret\n", "line 2"),
            (":x\n", "line 1"),
            ("a:\n", "line 1"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = Writers::from_networks(vec![]).with_accounts(file.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", gate("", "stager:secret\n")).contains("secret"));
    }
}
