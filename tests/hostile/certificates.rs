//! Certificates with one flaw each, presented wherever the mesh asks for one: to a sidecar's inbound port, to the
//! control plane, and to a caller's sidecar that has connected to an endpoint. Unless the signature is the flaw, the
//! mesh's own CA signs them, as if it were stolen, so that the flaw is the only reason to refuse them.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::Channel;
use weft_control::ca::Ca;
use weft_tests::{Bed, Forge, Member, Shown, eventually, metric, probe, probe_service};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const CONTROL: &str = "spiffe://weft.local/ns/weft/sa/control";

/// Makes the certificate to present, for an identity.
type Make = fn(&Forge, &str) -> Shown;

/// The flaw, a part of the error's text, and how to make the certificate.
const WRONG: &[(&str, &str, Make)] = &[
    ("of another CA with the same name", "BadSignature", |_, id| {
        let folder = tempfile::tempdir().expect("a folder");
        Ca::open_or_create(folder.path(), &"weft.local".parse().expect("a trust domain")).expect("another CA");
        Forge::of(folder.path()).good(id)
    }),
    ("whose signature is forged", "BadSignature", |ca, id| {
        let mut shown = ca.good(id);
        let mut der = shown.chain[0].to_vec();
        *der.last_mut().expect("it has bytes") ^= 1;
        shown.chain[0] = der.into();
        shown
    }),
    ("that a member has signed", "EndEntityUsedAsCa", |ca, id| {
        let key = KeyPair::generate().expect("a key");
        let params = Forge::params("spiffe://weft.local/ns/shop/sa/member");
        let member = params.signed_by(&key, ca.issuer()).expect("it is signed").der().clone();
        let (issuer, key) = (Issuer::new(params, key), KeyPair::generate().expect("a key"));
        let leaf = Forge::params(id).signed_by(&key, &issuer).expect("it is signed").der().clone();
        Shown::new(vec![leaf, member], &key)
    }),
    ("with another one's key", "BadSignature", |ca, id| {
        Shown::new(ca.good(id).chain, &KeyPair::generate().expect("a key"))
    }),
    ("that has expired", "expired", |ca, id| ca.until(id, SystemTime::now() - Duration::from_secs(5))),
    ("that is not valid yet", "not valid yet", |ca, id| {
        changed(ca, id, |params| params.not_before = date_time_ymd(2098, 1, 1))
    }),
    ("whose key signs certificates", "key usage", |ca, id| {
        changed(ca, id, |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign))
    }),
    ("whose key signs revocations", "key usage", |ca, id| {
        changed(ca, id, |params| params.key_usages.push(KeyUsagePurpose::CrlSign))
    }),
    ("whose key may not sign", "key usage", |ca, id| {
        changed(ca, id, |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])
    }),
    ("for signing code", "does not allow extended key usage", |ca, id| {
        changed(ca, id, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning])
    }),
    ("with two identities", "2 URI names", |ca, id| {
        changed(ca, id, |params| params.subject_alt_names.push(uri("spiffe://weft.local/ns/shop/sa/other")))
    }),
    ("with a DNS name alone", "0 URI names", |ca, id| {
        changed(ca, id, |params| params.subject_alt_names = vec![dns("probe.shop")])
    }),
    ("without a name", "0 URI names", |ca, id| changed(ca, id, |params| params.subject_alt_names = Vec::new())),
    ("with the URI of a page", "is not of the form", |ca, id| {
        changed(ca, id, |params| params.subject_alt_names = vec![uri("https://weft.local/ns/shop/sa/probe")])
    }),
    ("of the trust domain itself", "is not of the form", |ca, id| {
        changed(ca, id, |params| params.subject_alt_names = vec![uri("spiffe://weft.local")])
    }),
    ("of another trust domain", "elsewhere.example", |ca, _| ca.good("spiffe://elsewhere.example/ns/shop/sa/probe")),
    ("of a CA", "CaUsedAsEndEntity", |ca, id| {
        changed(ca, id, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
    }),
    ("of the mesh's own root", "CaUsedAsEndEntity", |ca, _| ca.root()),
    ("at the end of a long chain", "MaximumPathDepthExceeded", |ca, id| below(ca, id, (0..7).map(intermediate))),
    ("below a CA for other URIs", "NameConstraintViolation", |ca, id| {
        let mut other = intermediate(0);
        // NameConstraints ::= { permittedSubtrees [0] { { uniformResourceIdentifier [6] } } } (RFC 5280, section
        // 4.2.1.10).
        let name = b".elsewhere.example";
        let length = name.len() as u8;
        let heads = [0x30, length + 6, 0xa0, length + 4, 0x30, length + 2, 0x86, length];
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], [&heads[..], name].concat());
        extension.set_criticality(true);
        other.custom_extensions.push(extension);
        below(ca, id, [other])
    }),
    ("below a CA for other hosts", "NameConstraintViolation", |ca, id| {
        let mut other = intermediate(0);
        let permitted_subtrees = vec![GeneralSubtree::DnsName("elsewhere.example".into())];
        other.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        let mut leaf = Forge::params(id);
        leaf.subject_alt_names.push(dns("probe.shop"));
        chain(ca, &leaf, [other])
    }),
    ("signed with SHA-1", "UnsupportedSignatureAlgorithm", |ca, id| {
        let mut shown = ca.good(id);
        shown.chain[0] = with_sha1(&shown.chain[0]);
        shown
    }),
    ("with a critical extension that nobody knows", "UnsupportedCriticalExtension", |ca, id| {
        changed(ca, id, |params| {
            let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![5, 0]);
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        })
    }),
];

/// Wrong only for a client, and only for a server.
const WRONG_FOR_A_CLIENT: (&str, &str, Make) = ("for servers alone", "does not allow extended key usage", |ca, id| {
    changed(ca, id, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
});
const WRONG_FOR_A_SERVER: (&str, &str, Make) = ("for clients alone", "does not allow extended key usage", |ca, id| {
    changed(ca, id, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
});

/// Unusual but valid certificates of the mesh's CA, which have to be accepted.
const RIGHT: &[(&str, Make)] = &[
    ("as the control plane issues it", |ca, id| ca.good(id)),
    // As strong as P-256, so there is no reason to refuse it. The control plane itself issues only P-256.
    ("of another curve", |ca, id| ca.sign(&Forge::params(id), &PKCS_ECDSA_P384_SHA384)),
    // For any use (RFC 5280, section 4.2.1.12).
    ("without extended key usage", |ca, id| changed(ca, id, |params| params.extended_key_usages = Vec::new())),
    // An SVID may have other names beside its one URI (X.509-SVID, section 2).
    ("with a DNS name beside its identity", |ca, id| {
        changed(ca, id, |params| params.subject_alt_names.push(dns("probe.shop")))
    }),
    ("below an intermediate CA", |ca, id| below(ca, id, [intermediate(0)])),
];

/// A certificate as the control plane issues it, with a change.
fn changed(ca: &Forge, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Shown {
    let mut params = Forge::params(id);
    change(&mut params);
    ca.sign(&params, &PKCS_ECDSA_P256_SHA256)
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("an ASCII name"))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("an ASCII name"))
}

fn intermediate(number: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("intermediate {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A correct leaf below these CAs. The mesh's root has signed the first of them.
fn below(ca: &Forge, id: &str, above: impl IntoIterator<Item = CertificateParams>) -> Shown {
    chain(ca, &Forge::params(id), above)
}

fn chain(ca: &Forge, leaf: &CertificateParams, above: impl IntoIterator<Item = CertificateParams>) -> Shown {
    let (mut chain, mut last) = (Vec::new(), None::<Issuer<'static, KeyPair>>);
    let sign = |params: &CertificateParams, key: &KeyPair, issuer: &Option<Issuer<'static, KeyPair>>| {
        let signed = params.signed_by(key, issuer.as_ref().unwrap_or(ca.issuer()));
        signed.expect("it is signed").der().clone()
    };
    for params in above {
        let key = KeyPair::generate().expect("a key");
        chain.insert(0, sign(&params, &key, &last));
        last = Some(Issuer::new(params, key));
    }
    let key = KeyPair::generate().expect("a key");
    chain.insert(0, sign(leaf, &key, &last));
    Shown::new(chain, &key)
}

/// Changes the signature algorithm in a certificate to ecdsa-with-SHA1. The signature does not match, but nobody checks
/// it if the algorithm is not supported.
fn with_sha1(der: &[u8]) -> CertificateDer<'static> {
    const SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    const SHA1: &[u8] = &[0x30, 0x09, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    // SEQUENCE { SEQUENCE { ... algorithm ... }, algorithm, signature }, both long enough for two bytes of length.
    let sequence = |content: &[u8]| {
        assert!(content.len() > 255);
        let length = (content.len() as u16).to_be_bytes();
        [&[0x30, 0x82], &length[..], content].concat()
    };
    let replaced = |bytes: &[u8]| {
        let at = bytes.windows(SHA256.len()).position(|window| window == SHA256).expect("it names its algorithm");
        [&bytes[..at], SHA1, &bytes[at + SHA256.len()..]].concat()
    };
    assert!(der[..2] == [0x30, 0x82] && der[4..6] == [0x30, 0x82]);
    let length = usize::from(u16::from_be_bytes([der[6], der[7]]));
    let (to_be_signed, rest) = der[8..].split_at(length);
    sequence(&[sequence(&replaced(to_be_signed)), replaced(rest)].concat()).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_with_any_one_flaw_is_refused() {
    let bed = Bed::start(&probe_service(1)).await;
    let ca = Forge::stolen(&bed);
    let honest = bed.channel();
    correct_ones_are_accepted(&bed, &ca).await;
    for (what, _, make) in WRONG.iter().chain([&WRONG_FOR_A_CLIENT]) {
        let shown = make(&ca, "spiffe://weft.local/ns/shop/sa/stranger");
        no_port_accepts_a_client_with(&bed, &ca, what, shown).await;
        honest_call(&honest).await;
    }
    for (number, (what, why, make)) in WRONG.iter().chain([&WRONG_FOR_A_SERVER]).enumerate() {
        no_caller_accepts_a_server_with(&bed, &ca, &format!("stranger-{number}"), what, why, *make).await;
        honest_call(&honest).await;
    }
}

async fn honest_call(channel: &Channel) {
    let answer = timeout(LIMIT, probe(channel, "Say", &[])).await.expect("an honest client is answered in time");
    answer.expect("an honest client is answered");
}

/// Whether a server goes on after the handshake: it then sends SETTINGS, as HTTP/2 starts.
async fn is_let_in(member: &Member<'_>, port: u16, peer: &str) -> Result<(), String> {
    let answer = async {
        let mut tls = member.dial(port, peer).await?;
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        let mut head = [0; 9];
        tls.read_exact(&mut head).await
    };
    timeout(LIMIT, answer).await.expect("it is accepted or refused in time").map(drop).map_err(|e| e.to_string())
}

async fn correct_ones_are_accepted(bed: &Bed, ca: &Forge) {
    for (number, (what, make)) in RIGHT.iter().enumerate() {
        let name = format!("right-{number}");
        let id = format!("spiffe://weft.local/ns/shop/sa/{name}");
        let member = Member::new(ca, Some(make(ca, &id)));
        for (port, peer) in [(bed.ports("probe-1").inbound, PROBE), (bed.control(), CONTROL)] {
            let answer = is_let_in(&member, port, peer).await;
            assert!(answer.is_ok(), "a certificate {what}: {answer:?}");
        }
        let (is_taken, status) = call(bed, ca, &name, *make).await;
        assert!(is_taken, "a certificate {what}: {status}");
    }
}

async fn no_port_accepts_a_client_with(bed: &Bed, ca: &Forge, what: &str, shown: Shown) {
    let failed = async || metric(bed.ports("probe-1").metrics, "weft_handshakes_failed_total", "").await;
    let before = failed().await;
    let member = Member::new(ca, Some(shown));
    for (port, peer) in [(bed.ports("probe-1").inbound, PROBE), (bed.control(), CONTROL)] {
        let answer = is_let_in(&member, port, peer).await;
        assert!(answer.is_err(), "port {port} takes a certificate {what}");
    }
    eventually(what, LIMIT, async || failed().await == before + 1.0).await;
}

async fn no_caller_accepts_a_server_with(bed: &Bed, ca: &Forge, name: &str, what: &str, why: &str, make: Make) {
    let (is_taken, status) = call(bed, ca, name, make).await;
    assert!(!is_taken, "a caller takes a certificate {what}");
    assert_eq!(status.code(), tonic::Code::Unavailable, "a certificate {what}: {status}");
    let error = status.metadata().get("x-weft-error").map(|error| error.as_bytes());
    assert_eq!(error, Some(&b"connect-failed"[..]), "a certificate {what}: {status}");
    assert!(status.message().contains(why), "a certificate {what}: {status}");
}

/// Calls an endpoint that was announced with a correct certificate, presents the one of `make`, and answers nothing.
/// Returns whether the caller has accepted the certificate, and the status of the call.
async fn call(bed: &Bed, ca: &Forge, name: &str, make: Make) -> (bool, tonic::Status) {
    let id = format!("spiffe://weft.local/ns/shop/sa/{name}");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let acceptor = TlsAcceptor::from(Member::new(ca, Some(make(ca, &id))).server());
    // A client completes the handshake only if it accepts the certificate.
    let serving = tokio::spawn(async move {
        let mut is_taken = false;
        while !is_taken {
            let (tcp, _) = listener.accept().await.expect("it listens");
            is_taken = acceptor.accept(tcp).await.is_ok();
        }
    });
    let honest = Member::new(ca, Some(ca.good(&id)));
    let _announced = honest.announce(bed, &format!("{name}.shop"), &id, port).await.expect("it is its own");
    let calling = timeout(LIMIT, probe(&bed.channel(), "Say", &[("x-weft-service", name)])).await;
    let status = calling.expect("it is answered").expect_err("nobody serves there");
    // The client may complete the handshake a moment before the server has seen it.
    if !status.message().contains("before HTTP/2 began") {
        serving.abort();
    }
    let is_taken = serving.await.is_ok();
    (is_taken, status)
}
