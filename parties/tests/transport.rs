//! The transport over real loopback QUIC: keys, control messages, channels, and every way a peer can misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use sharelens::codec::{self, Message};
use sharelens::config::LinkConfig;
use sharelens::control::{Accepted, Go, Greeting, MAX_MANIFEST, ModelId, Readiness, Refusal};
use sharelens::transport::{Connection, ControlStream, Ended, Endpoint, Sending, StreamChannel, Traffic};
use sharelens::{Code, Error, Identity, Pin};
use sharelens_protocol::{Channel, Error as ProtocolError, Step};

const TIMEOUT: Duration = Duration::from_secs(5);
const AT: Step = Step::layer(3).call(1);

fn identity() -> Arc<Identity> {
    Arc::new(Identity::generate().unwrap())
}

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

struct Pair {
    dialer: Connection,
    listener: Connection,
    _ends: (Endpoint, Endpoint),
}

async fn pair() -> Pair {
    pair_over(&LinkConfig::default()).await
}

async fn pair_over(link: &LinkConfig) -> Pair {
    let (a, b) = (identity(), identity());
    let server = Endpoint::listen(local(), b.clone(), link).unwrap();
    let client = Endpoint::dialing(a.clone(), link).unwrap();
    let address = server.local_addr().unwrap().to_string();
    let accept = async { server.accept().await.unwrap().handshake(TIMEOUT).await.unwrap() };
    let (dialer, listener) = tokio::join!(client.connect("b", &address, b.pin(), TIMEOUT), accept);
    let dialer = dialer.unwrap();
    assert_eq!((dialer.pin(), listener.pin()), (b.pin(), a.pin()));
    dialer.trust(8, 0);
    listener.trust(8, 0);
    Pair { dialer, listener: listener.named("a".into()), _ends: (client, server) }
}

/// Both ends of a control stream that already carried one message each way.
async fn streams(pair: &Pair) -> (ControlStream, ControlStream) {
    let mut a = pair.dialer.open(TIMEOUT).await.unwrap();
    a.send(&Go).await.unwrap();
    let mut b = pair.listener.accept(TIMEOUT).await.unwrap();
    b.recv::<Go>().await.unwrap();
    (a, b)
}

fn channel(stream: ControlStream) -> StreamChannel {
    stream.into_channel(Ended::default(), Sending::Unbounded, Traffic::default()).unwrap()
}

async fn channels(pair: &Pair) -> (StreamChannel, StreamChannel) {
    let (a, b) = streams(pair).await;
    (channel(a), channel(b))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_named_on_both_sides() {
    let (a, b, other) = (identity(), identity(), identity());
    let link = LinkConfig::default();
    let server = Endpoint::listen(local(), b.clone(), &link).unwrap();
    let client = Endpoint::dialing(a, &link).unwrap();
    let address = server.local_addr().unwrap().to_string();
    let accept = async { server.accept().await.unwrap().handshake(TIMEOUT).await.unwrap_err() };
    let (dialed, accepted) = tokio::join!(client.connect("server 1", &address, other.pin(), TIMEOUT), accept);
    let dialed = dialed.unwrap_err();
    assert!(
        matches!(&dialed, Error::Pin { expected, found, .. } if *expected == other.pin() && *found == b.pin())
    );
    for text in [dialed.to_string(), accepted.to_string()] {
        for part in ["server 1".to_string(), other.pin().to_string(), b.pin().to_string()] {
            assert!(text.contains(&part), "{text}");
        }
    }
}

#[tokio::test]
async fn a_peer_whose_key_is_not_looked_at_yet_can_send_nothing() {
    let (a, b) = (identity(), identity());
    let server = Endpoint::listen(local(), b.clone(), &LinkConfig::default()).unwrap();
    let client = Endpoint::dialing(a, &LinkConfig::default()).unwrap();
    let address = server.local_addr().unwrap().to_string();
    let accept = async { server.accept().await.unwrap().handshake(TIMEOUT).await.unwrap() };
    let (dialer, listener) = tokio::join!(client.connect("b", &address, b.pin(), TIMEOUT), accept);
    let (dialer, short) = (dialer.unwrap(), Duration::from_millis(300));
    let e = dialer.open(short).await.unwrap_err();
    assert!(matches!(&e, Error::Timeout { what, .. } if what == "free stream"), "{e}");
    listener.admit();
    let mut stream = dialer.open(TIMEOUT).await.unwrap();
    stream.send(&Go).await.unwrap();
    listener.accept(TIMEOUT).await.unwrap().recv::<Go>().await.unwrap();
}

#[tokio::test]
async fn what_is_said_out_of_turn_is_not_lost() {
    let pair = pair().await;
    let (mut a, mut b) = streams(&pair).await;
    // Nothing is said, and listening may be given up in the middle.
    for _ in 0..2 {
        assert!(tokio::time::timeout(Duration::from_millis(50), a.speaks()).await.is_err());
    }
    let frame = codec::encode(&Readiness::Ready { seconds: 1.5, queued: 0.25 }).unwrap();
    let (first, rest) = frame.split_at(1);
    b.send_bulk(first.to_vec().into()).await.unwrap();
    for _ in 0..2 {
        tokio::time::timeout(TIMEOUT, a.speaks()).await.expect("a byte is here");
    }
    b.send_bulk(rest.to_vec().into()).await.unwrap();
    assert_eq!(a.recv::<Readiness>().await.unwrap(), Readiness::Ready { seconds: 1.5, queued: 0.25 });
    b.send(&Go).await.unwrap();
    tokio::time::timeout(TIMEOUT, a.speaks()).await.expect("a message is here");
    assert_eq!(a.out_of_turn().await.code(), Code::Malformed);

    let (mut a, b) = streams(&pair).await;
    let refusal = Error::Busy { what: "sessions", most: 3 };
    let (e, ()) = tokio::join!(async { (a.speaks().await, a.out_of_turn().await).1 }, b.refuse(&refusal));
    assert_eq!(e.code(), Code::Busy, "{e}");
    let (mut a, b) = streams(&pair).await;
    b.reset(Code::Draining);
    tokio::time::timeout(TIMEOUT, a.speaks()).await.expect("it is gone");
    assert_eq!(a.out_of_turn().await.code(), Code::Draining);
}

/// A dialer made of bare parts, to do what ours never does.
async fn bare_dial(address: SocketAddr, config: rustls::ClientConfig) -> Result<quinn::Connection, String> {
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let connection =
        endpoint.connect_with(config, address, "sharelens").unwrap().await.map_err(|e| e.to_string())?;
    // With TLS 1.3 the dialer is done before the other side has looked at its certificate.
    match tokio::time::timeout(Duration::from_millis(500), connection.closed()).await {
        Ok(e) => Err(e.to_string()),
        Err(_) => Ok(connection),
    }
}

/// Trusts anyone; the tests look at what the listener does.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("QUIC has TLS 1.3 only")
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn bare_config(
    groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
    with_key: bool,
    alpn: &[u8],
) -> rustls::ClientConfig {
    use rustls::crypto::{CryptoProvider, aws_lc_rs};
    let provider = Arc::new(CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() });
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let mut config = if with_key {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let cert = rcgen::CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        builder.with_client_auth_cert(vec![cert.der().clone()], key.into()).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_the_hybrid_exchange_are_required() {
    use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
    let server = Endpoint::listen(local(), identity(), &LinkConfig::default()).unwrap();
    let address = server.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let mut seen = vec![];
        for _ in 0..4 {
            seen.push(server.accept().await.unwrap().handshake(TIMEOUT).await);
        }
        seen
    });
    let alpn = b"sharelens/1";
    bare_dial(address, bare_config(vec![X25519MLKEM768], true, alpn)).await.unwrap();
    let refused = [
        bare_config(vec![X25519MLKEM768], false, alpn),
        bare_config(vec![X25519, SECP256R1], true, alpn),
        bare_config(vec![X25519MLKEM768], true, b"h3"),
    ];
    for config in refused {
        bare_dial(address, config).await.unwrap_err();
    }
    let seen = accepting.await.unwrap();
    assert!(seen[0].is_ok(), "a P-256 key with the hybrid exchange: {seen:?}");
    assert!(seen[1..].iter().all(Result::is_err), "no key, no hybrid exchange, another protocol: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_messages_and_bulk() {
    let pair = pair().await;
    let (mut a, mut b) = streams(&pair).await;
    b.send(&Readiness::Ready { seconds: 1.5, queued: 0.25 }).await.unwrap();
    assert_eq!(a.recv::<Readiness>().await.unwrap(), Readiness::Ready { seconds: 1.5, queued: 0.25 });
    let bulk: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (sent, got) = tokio::join!(a.send_bulk(bulk.clone().into()), b.recv_bulk(bulk.len(), "bulk"));
    sent.unwrap();
    assert_eq!(got.unwrap(), bulk);
    let model = ModelId { name: "m".into(), version: 1 };
    let big = Accepted { model, manifest: vec![7; MAX_MANIFEST], owner: Pin::from_bytes([9; 32]) };
    let (sent, got) = tokio::join!(a.send(&big), b.recv::<Accepted>());
    sent.unwrap();
    assert_eq!(got.unwrap(), big);
    let (finished, end) = tokio::join!(a.finish(), b.recv::<Go>());
    finished.unwrap();
    assert!(end.unwrap_err().to_string().contains("end of the stream"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_control_messages_are_named() {
    let pair = pair().await;
    let go = codec::encode(&Go).unwrap();
    let header = |kind: u16, len: u32| {
        let mut h = kind.to_le_bytes().to_vec();
        h.extend(codec::FORMAT.to_le_bytes());
        h.extend(len.to_le_bytes());
        h
    };
    let cases: [(Vec<u8>, &str); 7] = [
        (codec::encode(&Greeting { boot: [0; 16] }).unwrap(), "kind 3"),
        (vec![0xff; 64], "format"),
        (header(Go::KIND, u32::MAX), "limit"),
        (header(Refusal::KIND, u32::MAX), "refusal"),
        (header(Go::KIND, 8).into_iter().chain([0; 8]).collect(), "left over"),
        (header(Readiness::KIND, 64), "kind 7"),
        (go[..5].to_vec(), "end of the stream"),
    ];
    for (bytes, word) in cases {
        let (mut a, mut b) = streams(&pair).await;
        a.send_bulk(bytes.into()).await.unwrap();
        let (_, got) = tokio::join!(a.finish(), b.recv::<Go>());
        let e = got.unwrap_err();
        assert!(matches!(&e, Error::Malformed { found, .. } if found.contains(word)), "{e} for {word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_resets_reach_the_peer() {
    let pair = pair().await;
    let (mut a, b) = streams(&pair).await;
    b.refuse(&Error::Busy { what: "sessions", most: 4 }).await;
    let e = a.recv::<Go>().await.unwrap_err();
    assert!(
        matches!(&e, Error::Refused { code: Code::Busy, text, .. } if text.contains("all 4 sessions")),
        "{e}"
    );

    // Also in the middle of an upload.
    let (mut a, b) = streams(&pair).await;
    let upload = vec![0; 64 << 20].into();
    let draining = Error::Draining("server 0".into());
    let (_, sent) = tokio::join!(b.refuse(&draining), a.send_bulk(upload));
    let e = sent.unwrap_err();
    assert!(
        matches!(&e, Error::Refused { code: Code::Draining, text, .. } if text.contains("server 0")),
        "{e}"
    );

    let (mut a, b) = streams(&pair).await;
    b.reset(Code::Timeout);
    let e = a.recv::<Go>().await.unwrap_err();
    assert!(matches!(&e, Error::Refused { code: Code::Timeout, .. }), "{e}");

    let (mut a, b) = streams(&pair).await;
    drop(b);
    assert!(matches!(a.recv::<Go>().await, Err(Error::Refused { code: Code::Ended, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_times_out() {
    let pair = pair().await;
    let (mut a, _b) = streams(&pair).await;
    a.set_timeout(Duration::from_millis(100));
    assert!(matches!(a.recv::<Go>().await, Err(Error::Timeout { .. })));

    let (mut a, b) = streams(&pair).await;
    a.set_timeout(Duration::from_millis(100));
    let (mut a, mut b) = (channel(a), channel(b));
    b.send(AT, vec![1; 10]).await.unwrap();
    assert_eq!(a.recv(AT, 10).await.unwrap(), [1; 10]);
    let e = a.recv(AT.message(1), 10).await.unwrap_err();
    assert!(matches!(&e, ProtocolError::Timeout { step, .. } if *step == AT.message(1)), "{e}");
    drop(a);
    let e = b.recv(AT.message(2), 1).await.unwrap_err();
    assert!(matches!(e, ProtocolError::Link { .. }), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_delivers_in_order_and_counts() {
    let pair = pair().await;
    let (a, b) = streams(&pair).await;
    let traffic = Traffic::default();
    let mut a = a.into_channel(Ended::default(), Sending::Unbounded, traffic.clone()).unwrap();
    let mut b = channel(b);
    for i in 0..100u16 {
        a.send(AT.message(i), vec![i as u8; usize::from(i) * 37]).await.unwrap();
    }
    for i in 0..100u16 {
        assert_eq!(
            b.recv(AT.message(i), usize::from(i) * 37).await.unwrap(),
            vec![i as u8; usize::from(i) * 37]
        );
    }
    assert_eq!(traffic.sent(), (0..100).map(|i| i * 37 + 16).sum::<u64>());
    let (x, y) = tokio::join!(a.close(), b.close());
    x.and(y).unwrap();

    let (mut a, b) = channels(&pair).await;
    a.send(AT, vec![1]).await.unwrap();
    let (_, y) = tokio::join!(a.close(), b.close());
    assert!(matches!(y, Err(Error::Malformed { found, .. }) if found.contains("more bytes")));
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_refuses_what_is_not_due() {
    let pair = pair().await;
    for (step, len) in [(AT.message(1), 3), (AT, 4), (AT, 0)] {
        let (mut a, mut b) = channels(&pair).await;
        a.send(AT, vec![1, 2, 3]).await.unwrap();
        assert!(matches!(b.recv(step, len).await, Err(ProtocolError::Peer { .. })));
    }
    let (mut a, b) = streams(&pair).await;
    let mut b = channel(b);
    a.send_bulk(vec![0xee; 100].into()).await.unwrap();
    assert!(matches!(b.recv(AT, 84).await, Err(ProtocolError::Peer { found, .. }) if found.contains("none")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_mid_message_is_noticed() {
    let pair = pair().await;
    let (mut a, b) = streams(&pair).await;
    let mut b = channel(b);
    let mut part = sharelens_protocol::channel::header(AT, 1000).to_vec();
    part.extend([0; 500]);
    a.send_bulk(part.into()).await.unwrap();
    let (finished, got) = tokio::join!(a.finish(), b.recv(AT, 1000));
    finished.unwrap();
    assert!(matches!(got, Err(ProtocolError::Peer { found, .. }) if found.contains("end of the stream")));

    // An aborted session leaves the others alone.
    let (mut a1, mut b1) = channels(&pair).await;
    let (a2, mut b2) = channels(&pair).await;
    drop(a2);
    assert!(
        matches!(b2.recv(AT, 1).await, Err(ProtocolError::Link { reason, .. }) if reason.contains("session"))
    );
    a1.send(AT, vec![5]).await.unwrap();
    assert_eq!(b1.recv(AT, 1).await.unwrap(), [5]);

    pair.dialer.close(Code::Draining, "");
    let e = b1.recv(AT, 1).await.unwrap_err();
    assert!(matches!(&e, ProtocolError::Link { reason, .. } if reason.contains("shutting down")), "{e}");
}

#[test]
fn a_vanished_process_is_noticed() {
    let link = LinkConfig { idle_timeout_s: 0.6, keep_alive_s: 0.2, ..LinkConfig::default() };
    let here = tokio::runtime::Runtime::new().unwrap();
    let there = tokio::runtime::Runtime::new().unwrap();
    let (a, b) = (identity(), identity());
    let server = {
        let _guard = there.enter();
        Endpoint::listen(local(), b.clone(), &link).unwrap()
    };
    let address = server.local_addr().unwrap().to_string();
    let serving = there.spawn(async move {
        let connection = server.accept().await.unwrap().handshake(TIMEOUT).await.unwrap();
        connection.admit();
        let mut stream = connection.accept(TIMEOUT).await.unwrap();
        stream.recv::<Go>().await.unwrap();
        let mut part = sharelens_protocol::channel::header(AT, 1000).to_vec();
        part.extend([0; 500]);
        stream.send_bulk(part.into()).await.unwrap();
        (server, connection, stream)
    });
    here.block_on(async {
        let client = Endpoint::dialing(a, &link).unwrap();
        let connection = client.connect("b", &address, b.pin(), TIMEOUT).await.unwrap();
        let mut stream = connection.open(TIMEOUT).await.unwrap();
        stream.send(&Go).await.unwrap();
        let held = tokio::time::timeout(TIMEOUT, serving).await.unwrap().unwrap();
        let mut channel = channel(stream);
        let start = Instant::now();
        there.shutdown_background();
        std::mem::forget(held);
        let e = channel.recv(AT, 1000).await.unwrap_err();
        assert!(matches!(&e, ProtocolError::Link { .. }), "{e}");
        assert!(start.elapsed() < Duration::from_secs(4));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_may_write_64_mib_at_once() {
    const BYTES: usize = 64 << 20;
    let pair = pair().await;
    let (mut a, mut b) = channels(&pair).await;
    a.send(AT, vec![1; BYTES]).await.unwrap();
    b.send(AT, vec![2; BYTES]).await.unwrap();
    let (x, y) = tokio::join!(a.recv(AT, BYTES), b.recv(AT, BYTES));
    assert!(x.unwrap().iter().all(|v| *v == 2) && y.unwrap().iter().all(|v| *v == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_channel_waits_for_room() {
    let pair = pair().await;
    let (a, b) = streams(&pair).await;
    let sending = Sending::Bounded { bytes: 1 << 20, wait: Duration::from_millis(300) };
    let mut a = a.into_channel(Ended::default(), sending, Traffic::default()).unwrap();
    let mut b = channel(b);
    // The peer's window takes some, the queue one message; then there must be an end.
    let mut sent = 0u16;
    let e = loop {
        match a.send(AT.message(sent), vec![0; 4 << 20]).await {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < 100, "no bound");
    };
    assert!(matches!(e, ProtocolError::Timeout { .. }), "{e}");
    for i in 0..sent {
        b.recv(AT.message(i), 4 << 20).await.unwrap();
    }
    a.send(AT.message(sent), vec![0; 1]).await.unwrap();
    b.recv(AT.message(sent), 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_share_a_connection_from_threads_of_their_own() {
    let pair = pair().await;
    let handle = tokio::runtime::Handle::current();
    let mut threads = vec![];
    for s in 0..8u8 {
        let (a, b) = channels(&pair).await;
        for mut end in [a, b] {
            let handle = handle.clone();
            threads.push(std::thread::spawn(move || {
                handle.block_on(async {
                    for round in 0..200u16 {
                        end.send(AT.message(round), vec![s; 100]).await.unwrap();
                        assert_eq!(end.recv(AT.message(round), 100).await.unwrap(), [s; 100]);
                    }
                    end.close().await.unwrap();
                });
            }));
        }
    }
    tokio::task::spawn_blocking(|| threads.into_iter().for_each(|t| t.join().unwrap())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_wakes_its_channels() {
    let pair = pair().await;
    let (a, b) = streams(&pair).await;
    let ended = Ended::default();
    let mut a = a.into_channel(ended.clone(), Sending::Unbounded, Traffic::default()).unwrap();
    let mut b = channel(b);
    let waiting = tokio::spawn(async move { a.recv(AT, 1).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    ended.end(Error::Busy { what: "sessions", most: 1 });
    ended.end(Error::Busy { what: "sessions", most: 2 });
    let e = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&e, ProtocolError::Ended(reason) if reason.contains("all 1 sessions")), "{e}");
    let e = b.recv(AT, 1).await.unwrap_err();
    assert!(matches!(&e, ProtocolError::Link { reason, .. } if reason.contains("no free place")), "{e}");
}
