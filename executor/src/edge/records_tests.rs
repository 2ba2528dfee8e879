//! Records of our own against those of others: a TLS library's client in memory, OpenSSL's over sockets, and clients who
//! mean no good and have the right keys.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{
    AlertDescription, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion,
    SupportedCipherSuite,
};

use super::super::buffer::Buffer;
use super::super::cipher::{self, CONTENT_BYTES_MAX, Opener, Sealer};
use super::super::records::{Error, Records};
use super::*;

/// Numbers that are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// With certificates as ours.
fn suites() -> Vec<SupportedCipherSuite> {
    let suites: Vec<_> = ring::default_provider()
        .cipher_suites
        .into_iter()
        .filter(|suite| !format!("{suite:?}").contains("_RSA_"))
        .collect();
    assert_eq!(suites.len(), 6, "{suites:?}");
    suites
}

fn version(suite: &SupportedCipherSuite) -> ProtocolVersion {
    suite.version().version
}

fn first_of(wanted: ProtocolVersion) -> SupportedCipherSuite {
    suites().into_iter().find(|suite| version(suite) == wanted).unwrap()
}

/// A client and what serves it, hands shaken.
fn meet(suite: SupportedCipherSuite) -> (ClientConnection, Records) {
    let authority = authority();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = CryptoProvider { cipher_suites: vec![suite], ..ring::default_provider() };
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    client.set_buffer_limit(None);
    let mut session = Session::new(config(&ContainerProxy::default(), &authority.issue(NAME))).unwrap();
    let (mut up, mut plain, mut down) = (Vec::new(), Buffer::default(), Buffer::default());
    while session.is_handshaking() || client.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        let taken = session.take(&mut up, &mut plain, &mut down).unwrap();
        up.drain(..taken);
        hear(&mut client, &mut down).unwrap();
    }
    assert!(up.is_empty() && plain.is_empty());
    (client, session.into_records().unwrap())
}

/// What the client makes of it.
fn hear(client: &mut ClientConnection, down: &mut Buffer) -> Result<Vec<u8>, rustls::Error> {
    let mut plain = Vec::new();
    let mut sealed = std::mem::take(down);
    let mut sealed = &*sealed.filled();
    while !sealed.is_empty() {
        client.read_tls(&mut sealed).unwrap();
        let state = client.process_new_packets()?;
        let begin = plain.len();
        plain.resize(begin + state.plaintext_bytes_to_read(), 0);
        client.reader().read_exact(&mut plain[begin..]).unwrap();
    }
    Ok(plain)
}

/// Given in pieces of any size, as they come from a socket.
fn take(
    records: &mut Records,
    sealed: &[u8],
    out: &mut Buffer,
    chance: &mut Chance,
) -> Result<Vec<u8>, Error> {
    let (mut waiting, mut plain, mut left) = (Vec::new(), Vec::new(), sealed);
    while !left.is_empty() {
        let (piece, rest) = left.split_at(1 + chance.below(left.len()));
        waiting.extend_from_slice(piece);
        left = rest;
        let taken = records.open(&mut waiting, out)?;
        plain.extend_from_slice(&waiting[..taken.content_bytes]);
        waiting.drain(..taken.bytes);
    }
    assert!(waiting.is_empty(), "{} bytes were not understood", waiting.len());
    Ok(plain)
}

fn send_up(
    client: &mut ClientConnection,
    records: &mut Records,
    data: &[u8],
    out: &mut Buffer,
    chance: &mut Chance,
) -> Result<Vec<u8>, Error> {
    client.writer().write_all(data).unwrap();
    let mut sealed = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sealed).unwrap();
    }
    take(records, &sealed, out, chance)
}

/// A row, as it is read from an app.
fn send_down(records: &mut Records, data: &[u8], out: &mut Buffer) -> Result<(), Error> {
    records.make_ready(out)?;
    let row = out.room(records.row_bytes());
    let mut left = data;
    for place in &mut records.contents(row) {
        let length = place.len().min(left.len());
        place[..length].copy_from_slice(&left[..length]);
        left = &left[length..];
    }
    assert!(left.is_empty());
    let sealed = records.seal(row, data.len())?;
    out.add(sealed);
    Ok(())
}

const SIZES: [usize; 8] = [0, 1, 100, 16_383, 16_384, 16_385, 40_000, 131_072];

#[test]
fn a_librarys_client_and_our_records_understand_each_other_whatever_the_cipher() {
    let mut chance = Chance(1);
    let data = pattern(131_072);
    for suite in suites() {
        let (mut client, mut records) = meet(suite);
        let mut out = Buffer::default();
        for round in 0..40 {
            let size = SIZES[chance.below(SIZES.len())];
            let got = send_up(&mut client, &mut records, &data[..size], &mut out, &mut chance).unwrap();
            assert!(got == data[..size], "{suite:?}, {round}: {} of {size} up", got.len());
            send_down(&mut records, &data[..size], &mut out).unwrap();
            let got = hear(&mut client, &mut out).unwrap();
            assert!(got == data[..size], "{suite:?}, {round}: {} of {size} down", got.len());
            if version(&suite) == ProtocolVersion::TLSv1_3 && chance.below(3) == 0 {
                client.refresh_traffic_keys().unwrap();
            }
        }
        records.finish(&mut out).unwrap();
        assert!(hear(&mut client, &mut out).unwrap().is_empty());
        assert_eq!(client.reader().read(&mut [0]).unwrap(), 0, "{suite:?}: a clean end");
        client.send_close_notify();
        let got = send_up(&mut client, &mut records, b"", &mut out, &mut chance).unwrap();
        assert!(got.is_empty() && records.client_finished(), "{suite:?}");
        let taken = records.open(&mut [1, 2, 3], &mut out).unwrap();
        assert_eq!((taken.bytes, taken.content_bytes), (3, 0), "what follows the end is nobody's");
    }
}

/// Whole records in a row of them.
fn count(mut sealed: &[u8]) -> usize {
    let mut count = 0;
    while let Some(&[_, _, _, high, low]) = sealed.first_chunk::<5>() {
        sealed = &sealed[5 + usize::from(u16::from_be_bytes([high, low]))..];
        count += 1;
    }
    count
}

#[test]
fn a_key_is_replaced_or_the_connection_ends_before_it_is_worn_out() {
    const RECORDS_MAX: u64 = 40;
    let data = pattern(100_000);
    for suite in suites() {
        let (mut client, mut records) = meet(suite);
        let mut out = Buffer::default();
        records.wear_out_after(RECORDS_MAX);
        let ended = (0..100).find_map(|_| send_down(&mut records, &data, &mut out).err());
        let Some(error) = ended else {
            assert_eq!(version(&suite), ProtocolVersion::TLSv1_3);
            assert!(hear(&mut client, &mut out).unwrap() == data.repeat(100), "{suite:?}");
            continue;
        };
        assert_eq!(version(&suite), ProtocolVersion::TLSv1_2, "{error}");
        assert!(matches!(error, Error::Record(cipher::Error::WornOut)), "{error}");
        records.explain(&error, &mut out).unwrap();
        assert!((20..RECORDS_MAX as usize).contains(&count(out.filled())), "{suite:?}");
        let told = hear(&mut client, &mut out);
        assert_eq!(told, Err(rustls::Error::AlertReceived(AlertDescription::InternalError)));
    }
}

#[test]
fn new_keys_without_end_are_refused() {
    let (mut client, mut records) = meet(first_of(ProtocolVersion::TLSv1_3));
    let (mut out, mut chance) = (Buffer::default(), Chance(2));
    for is_last in [false, true] {
        for _ in 0..32 {
            client.refresh_traffic_keys().unwrap();
            send_up(&mut client, &mut records, b"", &mut out, &mut chance).unwrap();
            hear(&mut client, &mut out).unwrap();
        }
        // The client is as strict with us.
        send_down(&mut records, b"y", &mut out).unwrap();
        hear(&mut client, &mut out).unwrap();
        if !is_last {
            send_up(&mut client, &mut records, b"x", &mut out, &mut chance).unwrap();
        }
    }
    client.refresh_traffic_keys().unwrap();
    let refused = send_up(&mut client, &mut records, b"", &mut out, &mut chance);
    assert!(matches!(refused, Err(Error::TooOften("new keys"))), "{refused:?}");
}

fn sealed(sealer: &mut Sealer, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut record = vec![0; sealer.record_bytes(content.len())];
    let head = sealer.head_bytes();
    record[head..head + content.len()].copy_from_slice(content);
    sealer.seal(kind, &mut record).unwrap();
    record
}

type Says = fn(&mut Sealer) -> Vec<u8>;

/// Who has the keys may say anything; and what it hears before it is let go, `None` for nothing.
const MISCHIEF: [(&str, Says, Option<AlertDescription>); 13] = {
    use AlertDescription::{BadRecordMac, DecodeError, RecordOverflow, UnexpectedMessage};
    use ContentType::{Alert, ApplicationData, ChangeCipherSpec, Handshake};
    [
        (
            "a record that was changed",
            |keys| {
                let mut record = sealed(keys, ApplicationData, b"hello");
                record[15] ^= 1;
                record
            },
            Some(BadRecordMac),
        ),
        ("a record twice", |keys| sealed(keys, ApplicationData, b"hello").repeat(2), Some(BadRecordMac)),
        (
            "the second record first",
            |keys| {
                sealed(keys, ApplicationData, b"first");
                sealed(keys, ApplicationData, b"second")
            },
            Some(BadRecordMac),
        ),
        ("a record with nothing in it", |_| vec![23, 3, 3, 0, 0], Some(BadRecordMac)),
        ("a record without end", |_| vec![23, 3, 3, 0xFF, 0xFF], Some(RecordOverflow)),
        ("what is no record", |_| b"GET / HTTP/1.1\r\n".to_vec(), Some(UnexpectedMessage)),
        ("another protocol", |_| vec![23, 2, 0, 0, 1], Some(UnexpectedMessage)),
        ("a change of ciphers", |keys| sealed(keys, ChangeCipherSpec, &[1]), Some(UnexpectedMessage)),
        ("a handshake's end", |keys| sealed(keys, Handshake, &[20, 0, 0, 1, 1]), Some(UnexpectedMessage)),
        ("an empty message", |keys| sealed(keys, Handshake, b""), Some(UnexpectedMessage)),
        ("half an alert", |keys| sealed(keys, Alert, &[2]), Some(DecodeError)),
        ("a fatal alert", |keys| sealed(keys, Alert, &[2, 80]), None),
        ("a record of zeros", |keys| sealed(keys, ContentType::Unknown(0), &[0; 9]), Some(UnexpectedMessage)),
    ]
};

/// The same, of one version only.
const MISCHIEF_OF_ONE: [(&str, ProtocolVersion, Says, Option<AlertDescription>); 7] = {
    use AlertDescription::{DecodeError, UnexpectedMessage};
    use ContentType::{Alert, Handshake};
    use ProtocolVersion::{TLSv1_2, TLSv1_3};
    [
        ("a new beginning", TLSv1_3, |keys| sealed(keys, Handshake, &[1, 0, 0, 0]), Some(UnexpectedMessage)),
        (
            "new keys of another kind",
            TLSv1_3,
            |keys| sealed(keys, Handshake, &[24, 0, 0, 1, 2]),
            Some(DecodeError),
        ),
        (
            "new keys and more",
            TLSv1_3,
            |keys| sealed(keys, Handshake, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0]),
            Some(DecodeError),
        ),
        ("half of new keys", TLSv1_3, |keys| sealed(keys, Handshake, &[24, 0, 0]), Some(DecodeError)),
        ("a warning", TLSv1_3, |keys| sealed(keys, Alert, &[1, 100]), None),
        ("new keys", TLSv1_2, |keys| sealed(keys, Handshake, &[24, 0, 0, 1, 0]), Some(UnexpectedMessage)),
        (
            "one warning after the other",
            TLSv1_2,
            |keys| (0..5).flat_map(|_| sealed(keys, Alert, &[1, 90])).collect(),
            Some(UnexpectedMessage),
        ),
    ]
};

#[test]
fn a_client_with_the_right_keys_that_means_no_good_is_told_why_it_is_let_go() {
    for suite in suites() {
        let of_one = MISCHIEF_OF_ONE.into_iter().filter(|(_, of, ..)| *of == version(&suite));
        let of_one = of_one.map(|(name, _, says, told)| (name, says, told));
        for (name, says, expected) in MISCHIEF.into_iter().chain(of_one) {
            let (client, mut records) = meet(suite);
            let keys = client.dangerous_extract_secrets().unwrap();
            let mut sealer = Sealer::new(version(&suite), keys.tx, u64::MAX).unwrap();
            let mut opener = Opener::new(version(&suite), keys.rx).unwrap();
            let mut out = Buffer::default();
            let error = records.open(&mut says(&mut sealer), &mut out).expect_err(name);
            assert!(out.is_empty(), "{name}");
            records.explain(&error, &mut out).unwrap();
            let told = opener.open(out.filled(), 0, 0).unwrap();
            let told = told.map(|told| (told.kind, out.filled()[..told.content_bytes].to_vec()));
            let expected = expected.map(|alert| (ContentType::Alert, vec![2, alert.into()]));
            assert_eq!(told, expected, "{suite:?}, {name}: {error}");
        }
    }
}

#[test]
fn who_wants_to_begin_again_is_told_no_and_goes_on_unless_it_insists() {
    let (client, mut records) = meet(first_of(ProtocolVersion::TLSv1_2));
    let keys = client.dangerous_extract_secrets().unwrap();
    let mut sealer = Sealer::new(ProtocolVersion::TLSv1_2, keys.tx, u64::MAX).unwrap();
    let mut opener = Opener::new(ProtocolVersion::TLSv1_2, keys.rx).unwrap();
    let mut out = Buffer::default();
    let mut input = sealed(&mut sealer, ContentType::Handshake, &[1, 0, 0, 0]);
    input.extend(sealed(&mut sealer, ContentType::ApplicationData, b"hello"));
    let taken = records.open(&mut input, &mut out).unwrap();
    assert_eq!(&input[..taken.content_bytes], b"hello");
    opener.open(out.filled(), 0, 0).unwrap().unwrap();
    assert_eq!(out.filled()[..2], [1, AlertDescription::NoRenegotiation.into()]);
    let mut input = sealed(&mut sealer, ContentType::Handshake, &[1, 0, 0, 0]);
    let error = records.open(&mut input, &mut out).unwrap_err();
    assert!(matches!(error, Error::TooOften(_)), "{error}");
}

/// Keys of nobody's, each time the same.
fn keys(is_aes: bool) -> (u64, ConnectionTrafficSecrets) {
    let (key, iv) = (AeadKey::from([7; 32]), Iv::new([9; 12]));
    let secrets = match is_aes {
        true => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
        false => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
    };
    (5, secrets)
}

const FORMS: [(ProtocolVersion, bool); 4] = [
    (ProtocolVersion::TLSv1_3, true),
    (ProtocolVersion::TLSv1_3, false),
    (ProtocolVersion::TLSv1_2, true),
    (ProtocolVersion::TLSv1_2, false),
];

#[test]
fn no_two_records_are_sealed_with_the_same_number() {
    for (version, is_aes) in FORMS {
        let mut sealer = Sealer::new(version, keys(is_aes), 1005).unwrap();
        assert_eq!(sealer.records_left(), 1000);
        let mut record = vec![0; sealer.record_bytes(64)];
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            record.fill(0);
            sealer.seal(ContentType::ApplicationData, &mut record).unwrap();
            // The same text under the same nonce would be the same.
            let text = sealer.head_bytes();
            assert!(seen.insert(record[text..text + 64].to_vec()));
        }
        for _ in 0..3 {
            let refused = sealer.seal(ContentType::ApplicationData, &mut record);
            assert_eq!(refused, Err(cipher::Error::WornOut));
        }
        let mut large = vec![0; sealer.record_bytes(CONTENT_BYTES_MAX + 1)];
        assert_eq!(sealer.seal(ContentType::ApplicationData, &mut large), Err(cipher::Error::TooLong));
    }
}

/// All that can be opened, and whether all could.
fn open_all(opener: &mut Opener, bytes: &mut [u8]) -> (Vec<u8>, bool) {
    let (mut at, mut to) = (0, 0);
    loop {
        match opener.open(bytes, at, to) {
            Ok(Some(opened)) => (at, to) = (at + opened.record_bytes, to + opened.content_bytes),
            Ok(None) => return (bytes[..to].to_vec(), at == bytes.len()),
            Err(_) => return (bytes[..to].to_vec(), false),
        }
    }
}

#[test]
fn whatever_becomes_of_records_on_their_way_what_is_opened_is_what_was_sealed() {
    let mut chance = Chance(3);
    for (version, is_aes) in FORMS {
        let mut sealer = Sealer::new(version, keys(is_aes), u64::MAX).unwrap();
        let (mut stream, mut content) = (Vec::new(), Vec::new());
        for length in [10, 0, 300, 1, 2000, 17] {
            let data = pattern(length);
            stream.extend(sealed(&mut sealer, ContentType::ApplicationData, &data));
            content.extend(data);
        }
        let open = |bytes: &mut [u8]| open_all(&mut Opener::new(version, keys(is_aes)).unwrap(), bytes);
        assert_eq!(open(&mut stream.clone()), (content.clone(), true));
        for turn in 0..3000 {
            let (mut bytes, at) = (stream.clone(), chance.below(stream.len()));
            let until = at + 1 + chance.below(stream.len() - at);
            match turn % 5 {
                0 => bytes[at] ^= 1 << chance.below(8),
                1 => bytes.truncate(at),
                2 => drop(bytes.drain(at..until)),
                3 => bytes.insert(at, chance.below(256) as u8),
                _ => drop(bytes.splice(at..at, stream[at..until].to_vec())),
            }
            let (opened, _) = open(&mut bytes);
            assert!(content.starts_with(&opened), "turn {turn}");
        }
    }
}

/// An app that sends much to whom asks for it, and says again what it is told otherwise.
async fn app(stream: TcpStream, much: Vec<u8>) {
    let (mut reader, mut writer) = stream.into_split();
    let mut said = vec![0; 1000];
    while let Ok(length @ 1..) = reader.read(&mut said).await {
        if &said[..length] == b"much\n" {
            writer.write_all(&much).await.unwrap();
            return;
        }
        writer.write_all(&said[..length]).await.unwrap();
    }
}

/// The port of something that serves TLS before such apps.
async fn serve(much: Vec<u8>) -> u16 {
    let config = config(&ContainerProxy::default(), &authority().issue(NAME));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (config, much) = (config.clone(), much.clone());
            tokio::spawn(async move {
                let client = Arrival::new(client, Session::new(config).unwrap()).shake_hands().await;
                let (to_app, app_end) = pair().await;
                tokio::spawn(app(app_end, much));
                let activity = Activity::now();
                let _ = Relay::new(client.unwrap(), to_app, &activity).run().await;
            });
        }
    });
    port
}

fn openssl(port: u16, options: &[&str]) -> Option<Child> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()
}

/// Reads until this was said.
fn expect(from: &mut impl Read, text: &str) {
    let (mut all, mut byte) = (Vec::new(), [0]);
    while !all.ends_with(text.as_bytes()) {
        let read = from.read(&mut byte).unwrap();
        assert!(read == 1, "{text:?} was not said, but {}", String::from_utf8_lossy(&all));
        all.push(byte[0]);
    }
}

/// A talk, in newer versions with new keys under way.
fn talk(mut openssl: Child, options: &[&str]) {
    let (mut said, mut told) = (openssl.stdout.take().unwrap(), openssl.stdin.take().unwrap());
    let mut errors = openssl.stderr.take().unwrap();
    told.write_all(b"first\n").unwrap();
    expect(&mut said, "first\n");
    if options[0] == "-tls1_3" {
        // With an answer, and without.
        for command in ["K\n", "k\n"] {
            told.write_all(command.as_bytes()).unwrap();
            expect(&mut errors, "KEYUPDATE\n");
            told.write_all(b"with new keys\n").unwrap();
            expect(&mut said, "with new keys\n");
        }
    }
    drop(told);
    assert!(openssl.wait().unwrap().success(), "{options:?}");
}

fn fetch(mut openssl: Child) -> Vec<u8> {
    // Kept open: with its end it would go.
    let mut asks = openssl.stdin.take().unwrap();
    asks.write_all(b"much\n").unwrap();
    let mut heard = Vec::new();
    openssl.stdout.take().unwrap().read_to_end(&mut heard).unwrap();
    drop(asks);
    openssl.wait().unwrap();
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_and_our_records_understand_each_other_whatever_the_cipher() {
    const TEST: &str = "openssl_and_our_records_understand_each_other_whatever_the_cipher";
    const TABLE: [[&str; 3]; 6] = [
        ["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
        ["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"],
        ["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    ];
    let much = pattern(3_000_001);
    let port = serve(much.clone()).await;
    for options in &TABLE {
        let Some(talks) = openssl(port, options) else {
            println!("SKIPPED {TEST}: there is no openssl");
            return;
        };
        let tried = tokio::task::spawn_blocking(move || {
            talk(talks, options);
            fetch(openssl(port, &[options, &["-quiet"][..]].concat()).unwrap())
        });
        let heard = tried.await.unwrap();
        assert!(heard == much, "{options:?}: {} bytes", heard.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_vanishes_in_the_middle_of_a_record_or_breaks_one_ends_the_apps_connection() {
    let authority = authority();
    let half = [23, 3, 3, 0x40, 0, 1, 2, 3].to_vec();
    let broken = [vec![23, 3, 3, 0, 40], vec![7; 40]].concat();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (bytes, is_told) in [(&half, false), (&broken, true)] {
            let (mut client, mut app) = relayed(&authority, version).await;
            client.write_all(b"whole").await.unwrap();
            app.read_exact(&mut [0; 5]).await.unwrap();
            client.get_mut().0.write_all(bytes).await.unwrap();
            if is_told {
                let told = client.read(&mut [0]).await.unwrap_err().to_string();
                assert!(told.contains("BadRecordMac"), "{told}");
            }
            drop(client);
            assert_eq!(app.read(&mut [0]).await.unwrap(), 0);
        }
    }
}
