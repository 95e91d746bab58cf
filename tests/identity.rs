//! Which certificates the mesh accepts, tested from outside.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rcgen::date_time_ymd;
use rustls::{NamedGroup, ProtocolVersion};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::Code;
use weft_control::ca::Ca;
use weft_mesh::identity::SpiffeId;
use weft_tests::{Bed, Forge, Member, Shown, Text, Wire, eventually, framed, metric, probe, probe_service, raw};

/// A guard that only a very slow machine reaches.
const SOON: Duration = Duration::from_secs(60);
const PROBE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const STRANGER: &str = "spiffe://weft.local/ns/shop/sa/stranger";

/// A certificate for an identity, valid from the first of these years to the second.
fn during(ca: &Forge, id: &str, years: (i32, i32)) -> Shown {
    let mut params = Forge::params(id);
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    ca.sign(&params, &rcgen::PKCS_ECDSA_P256_SHA256)
}

/// Calls the probe's inbound port directly, and returns the headers that the service saw.
async fn knock(bed: &Bed, member: Member<'_>) -> Result<String, String> {
    // In TLS 1.3 a client learns only after its handshake that it was refused.
    let tls = member.dial(bed.ports("probe-1").inbound, PROBE).await.map_err(|e| e.to_string())?;
    let (sender, connection) = h2::client::handshake(tls).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await.map_err(|e| e.to_string())?;
    let request = http::Request::post("http://probe.shop/probe.v1.Probe/Say")
        .header("content-type", "application/grpc")
        .header("x-do", "headers")
        .header("x-forwarded-client-cert", "By=me;URI=spiffe://weft.local/ns/shop/sa/admin");
    let (answer, mut body) =
        sender.send_request(request.body(()).expect("a request"), false).map_err(|e| e.to_string())?;
    body.send_data(framed("hello"), true).map_err(|e| e.to_string())?;
    let mut answer = answer.await.map_err(|e| e.to_string())?;
    let mut message = Vec::new();
    while let Some(data) = answer.body_mut().data().await {
        message.extend_from_slice(&data.map_err(|e| e.to_string())?);
    }
    Ok(Text::decode(&message[5..]).map_err(|e| e.to_string())?.text)
}

async fn handshakes_failed(bed: &Bed) -> f64 {
    metric(bed.ports("probe-1").metrics, "weft_handshakes_failed_total", "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_right_certificate_is_accepted_over_tls13_with_a_hybrid_key() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let stranger = Member::new(ca, Some(ca.good(STRANGER)));
    let tls = stranger.dial(bed.ports("probe-1").inbound, PROBE).await.expect("it is accepted");
    let session = tls.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = session.negotiated_key_exchange_group().expect("keys are exchanged").name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    let chain = session.peer_certificates().expect("the server presents a certificate");
    assert_eq!(SpiffeId::of_certificate(&chain[0]).expect("an SVID").to_string(), PROBE);
    // One URI name and no other: no name that a DNS check would accept.
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
    let names = leaf.subject_alternative_name().expect("well-formed").expect("it has names");
    assert_eq!(names.value.general_names.len(), 1, "{names:?}");
    drop(tls);
    assert!(knock(bed, stranger).await.is_ok_and(|seen| seen.contains(STRANGER)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn plain_text_is_refused() {
    let bed = &Bed::start(&probe_service(1)).await;
    let before = handshakes_failed(bed).await;
    let port = bed.ports("probe-1").inbound;
    let answer = raw(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
    assert!(!answer.windows(3).any(|bytes| bytes == b"\x00\x00\x04"), "no SETTINGS: {}", answer.escape_ascii());
    let answer = raw(port, b"GET / HTTP/1.1\r\nhost: probe\r\n\r\n").await;
    assert!(!answer.starts_with(b"HTTP/"), "{}", answer.escape_ascii());
    eventually("both are counted", SOON, async || handshakes_failed(bed).await == before + 2.0).await;
    eventually("the log says why", SOON, async || bed.log().contains("only mutual TLS with an SVID")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_wrong_certificate_is_refused() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let folder = tempfile::tempdir().expect("a folder");
    Ca::open_or_create(folder.path(), &"weft.local".parse().expect("a trust domain")).expect("another CA");
    let foreign = Forge::of(folder.path());
    let other_domain = "spiffe://elsewhere.example/ns/shop/sa/stranger";
    let cases = [
        ("none at all", None),
        ("of a foreign CA", Some(foreign.good(STRANGER))),
        ("of a foreign CA and trust domain", Some(foreign.good(other_domain))),
        ("of another trust domain", Some(ca.good(other_domain))),
        ("expired", Some(during(ca, STRANGER, (2020, 2021)))),
        ("not yet valid", Some(during(ca, STRANGER, (2098, 2099)))),
    ];
    for (what, shown) in cases {
        let before = handshakes_failed(bed).await;
        let answer = knock(bed, Member::new(ca, shown)).await;
        assert!(answer.is_err(), "a certificate {what}: {answer:?}");
        eventually(what, SOON, async || handshakes_failed(bed).await == before + 1.0).await;
        probe(&bed.channel(), "Say", &[]).await.expect("others are answered");
    }
    for why in ["BadSignature", "certificate expired", "elsewhere.example"] {
        eventually(why, SOON, async || bed.log().contains(why)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_caller_is_the_one_in_the_certificate() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let seen = knock(bed, Member::new(ca, Some(ca.good(STRANGER)))).await.expect("it is accepted");
    let callers: Vec<_> = seen.lines().filter(|line| line.starts_with("x-forwarded-client-cert: ")).collect();
    assert!(callers.len() == 1 && callers[0].ends_with(&format!("URI={STRANGER}")), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_of_another_identity_is_refused() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let expected = "spiffe://weft.local/ns/shop/sa/users";
    let port = bed.ports("probe-1").inbound;
    let stranger = Member::new(ca, Some(ca.good(STRANGER)));
    let refused = stranger.dial(port, expected).await.expect_err("it is the probe");
    assert!(refused.to_string().contains(&format!("the peer is {PROBE}, expected {expected}")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_member_announces_for_another() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let port = bed.ports("probe-1").inbound;
    let stranger = || Some(ca.good(STRANGER));
    for (svid, service, spiffe_id, code) in [
        (stranger(), "probe.shop", STRANGER, Code::PermissionDenied),
        (stranger(), "probe.shop", PROBE, Code::PermissionDenied),
        (stranger(), "stranger.shop", PROBE, Code::PermissionDenied),
        (None, "stranger.shop", STRANGER, Code::Unauthenticated),
    ] {
        let refused = Member::new(ca, svid).announce(bed, service, spiffe_id, port).await.err().expect("it is refused");
        assert_eq!(refused.code(), code, "{service} by {spiffe_id}: {refused}");
    }
    // Here already the handshake fails.
    let expired = Some(during(ca, STRANGER, (2020, 2021)));
    assert!(Member::new(ca, expired).announce(bed, "stranger.shop", STRANGER, port).await.is_err());
    eventually("the log says why", SOON, async || bed.log().contains("its identity names another")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_endpoint_with_another_identity_than_announced_gets_no_call() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let calls = async || {
        let answer = probe(&bed.channel(), "Say", &[]).await.expect("an answer");
        answer.metadata().get("x-calls").expect("a count").to_str().expect("text").parse::<u64>().expect("a number")
    };
    let before = calls().await;
    let port = bed.ports("probe-1").inbound;
    let stranger = Member::new(ca, Some(ca.good(STRANGER)));
    let _announced = stranger.announce(bed, "stranger.shop", STRANGER, port).await.expect("it may");
    let status = probe(&bed.channel(), "Say", &[("x-weft-service", "stranger")]).await.expect_err("it is the probe");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), "connect-failed");
    assert!(status.message().contains(&format!("the peer is {PROBE}, expected {STRANGER}")), "{status}");
    assert_eq!(calls().await, before + 1, "the probe saw only the calls to itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn everything_on_the_wire_is_encrypted() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let (port, mut seen) = wiretap(bed.ports("probe-1").inbound).await;
    let own = Member::new(ca, Some(ca.good(PROBE)));
    let _announced = own.announce(bed, "probe.shop", PROBE, port).await.expect("it may");
    let mut wire = Wire::connect(bed.outbound()).await;
    let mut bytes = Vec::new();
    // Calls are balanced over both addresses of the one replica.
    let end = tokio::time::Instant::now() + SOON;
    while bytes.len() < 4_000 {
        assert!(tokio::time::Instant::now() < end, "no call went through the wiretap");
        let status = wire.call("Say", &[("x-secret", "a-word-that-nobody-may-read")]).await;
        assert_eq!(status.code(), Code::Ok, "{status}");
        while let Ok(chunk) = seen.try_recv() {
            bytes.extend_from_slice(&chunk);
        }
    }
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(!has(b"a-word-that") && !has(b"hello") && !has(b"probe.v1"), "something crossed in the clear");
    // In the ServerHello (RFC 8446, section 4.2): supported_versions is TLS 1.3, and the key share is of group 0x11ec,
    // X25519MLKEM768, with its 1120 bytes.
    assert!(has(b"\x00\x2b\x00\x02\x03\x04"), "TLS 1.3");
    assert!(has(b"\x00\x33\x04\x64\x11\xec\x04\x60"), "X25519MLKEM768");
    // The certificates are encrypted, too.
    assert!(!has(b"spiffe://"), "identities crossed in the clear");
}

/// Passes connections on to a loopback port, and reports the bytes in both directions.
async fn wiretap(to: u16) -> (u16, mpsc::UnboundedReceiver<Bytes>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    let (tells, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let target = TcpStream::connect(("127.0.0.1", to)).await.expect("something listens");
            let (a, b) = (stream.into_split(), target.into_split());
            tokio::spawn(pass_on(a.0, b.1, tells.clone()));
            tokio::spawn(pass_on(b.0, a.1, tells.clone()));
        }
    });
    (port, seen)
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    tells: mpsc::UnboundedSender<Bytes>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let _ = tells.send(Bytes::copy_from_slice(&buffer[..count]));
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
