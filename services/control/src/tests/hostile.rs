//! The control plane against compromised sidecars and strangers.

use http_body_util::Full;
use prost::Message as _;
use tokio::time::sleep;
use tonic::body::Body;
use tower::{Service as _, ServiceExt as _};
use weft_contracts::weft::discovery::v1::not_found;
use weft_mesh::limits;

use super::*;

const GREEDY: &str = "greedy.shop";

/// An announcement with these claims.
fn claiming(mesh: &Running, service: &str, id: &str, port: u16, contracts: &[&str], addresses: &[&str]) -> Announce {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Announce { contracts: texts(contracts), addresses: texts(addresses), ..announce(mesh, service, id, port) }
}

async fn owner(mesh: &Running, claim: &str) -> Option<String> {
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    watching.ask(watch_request::What::SubscribeContract(claim.into())).await;
    match watching.next().await {
        What::Owner(owner) => Some(owner.service),
        What::NotFound(_) => None,
        other => panic!("{other:?}"),
    }
}

async fn dashboard(mesh: &Running, path: &str) -> String {
    let mut stream = TcpStream::connect(mesh.dashboard).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn a_contract_cannot_be_taken_over_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let users = mesh.sidecar("users.shop").await;
    let contracts = [USERS];
    let mut owning = Announcing::open(&users, claiming(&mesh, "users.shop", "u1", 7001, &contracts, &[])).await;
    assert!(owning.answer().await.unwrap().contested.is_empty());

    let greedy = mesh.sidecar(GREEDY).await;
    let claims = [USERS, "greedy.v1.Own"];
    let mut taking = Announcing::open(&greedy, claiming(&mesh, GREEDY, "g1", 7002, &claims, &[])).await;
    let answer = taking.answer().await.unwrap();
    assert_eq!(answer.contested.len(), 1, "its other claim is accepted");
    assert_eq!(
        (&*answer.contested[0].claim, &*answer.contested[0].owner),
        (USERS, &*mesh.id("users.shop").to_string())
    );
    assert_eq!(owner(&mesh, "greedy.v1.Own").await.as_deref(), Some(GREEDY));
    // The owner's stream has broken.
    drop(owning);
    taking.say(announce_request::What::Announce(claiming(&mesh, GREEDY, "g1", 7002, &claims, &[]))).await;
    assert_eq!(taking.answer().await.unwrap().contested.len(), 1);
    assert_eq!(owner(&mesh, USERS).await.as_deref(), Some("users.shop"));
    let page = dashboard(&mesh, "/").await;
    assert!(page.contains("Contested claims") && page.contains(&mesh.id(GREEDY).to_string()), "{page}");
    let json = dashboard(&mesh, "/api/claims").await;
    assert!(json.contains(USERS) && json.contains(&mesh.id("users.shop").to_string()), "{json}");
    let metrics = dashboard(&mesh, "/metrics").await;
    assert!(metrics.contains("weft_control_claims_refused_total 2\n"), "{metrics}");
    mesh.stop().await;

    let mesh = Running::start(dir.path()).await;
    let greedy = mesh.sidecar(GREEDY).await;
    let mut taking = Announcing::open(&greedy, claiming(&mesh, GREEDY, "g1", 7002, &claims, &[])).await;
    assert_eq!(taking.answer().await.unwrap().contested.len(), 1, "although it comes first this time");
    assert_eq!(owner(&mesh, USERS).await, None);
    // The mesh's owner releases the claim.
    let of = crate::StateArgs { state_dir: dir.path().to_owned(), trust_domain: mesh.ca.trust_domain().clone() };
    let message = crate::release(&crate::ReleaseArgs { claim: USERS.into(), of: of.clone() }).unwrap();
    assert!(message.contains(&mesh.id("users.shop").to_string()), "{message}");
    timeout(SOON, async {
        while owner(&mesh, USERS).await.as_deref() != Some(GREEDY) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    mesh.stop().await;
    let kept = crate::claims_kept(&of).unwrap();
    assert!(kept.contains(&format!("{USERS} is pinned to spiffe://weft.test/ns/shop/sa/greedy")), "{kept}");
    crate::forget_contracts(&of).unwrap();
    assert!(!crate::claims_kept(&of).unwrap().contains("is pinned"), "nothing but the contract was pinned");
}

/// As with `weft up`, whose file names no contract of a service that has to be asked for them.
#[tokio::test]
async fn a_contract_that_the_file_leaves_open_is_nobody_s_until_it_is_granted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("services.yaml");
    std::fs::write(&file, "services: { users.shop: {}, greedy.shop: {} }\n").unwrap();
    let start = || Running::start_of(dir.path(), Budget::of_files(1 << 20), Some(file.clone()), None);
    let mesh = start().await;
    let of = crate::StateArgs { state_dir: dir.path().to_owned(), trust_domain: mesh.ca.trust_domain().clone() };
    let contracts = [USERS];
    // The compromised service comes first, and the honest one has claimed it too early.
    let mut open = Vec::new();
    for (service, id, port) in [(GREEDY, "g1", 7002), ("users.shop", "u1", 7001)] {
        let sidecar = mesh.sidecar(service).await;
        let mut claim = Announcing::open(&sidecar, claiming(&mesh, service, id, port, &contracts, &[])).await;
        assert_eq!(claim.answer().await.unwrap().unlisted, [USERS], "{service}");
        open.push((sidecar, claim));
    }
    assert_eq!(owner(&mesh, USERS).await, None);

    let (users, told) = (weft_mesh::names::ServiceName::parse("users.shop").unwrap(), vec![USERS.to_owned()]);
    assert!(!crate::are_pinned_to(&of, &users, &told).unwrap());
    crate::grant_contracts(&of, &users, &told).unwrap();
    timeout(SOON, async {
        while !crate::are_pinned_to(&of, &users, &told).unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(owner(&mesh, USERS).await.as_deref(), Some("users.shop"), "also what it has announced before");
    drop(open);
    mesh.stop().await;

    // It stays so when the control plane is started again and the compromised service is the first.
    let mesh = start().await;
    let greedy = mesh.sidecar(GREEDY).await;
    let mut taking = Announcing::open(&greedy, claiming(&mesh, GREEDY, "g1", 7002, &contracts, &[])).await;
    assert_eq!(taking.answer().await.unwrap().contested.len(), 1);
    let sidecar = mesh.sidecar("users.shop").await;
    let mut owning = Announcing::open(&sidecar, claiming(&mesh, "users.shop", "u1", 7001, &contracts, &[])).await;
    let answer = owning.answer().await.unwrap();
    assert!(answer.contested.is_empty() && answer.unlisted.is_empty(), "{answer:?}");
    mesh.stop().await;
}

#[tokio::test]
async fn an_endpoint_is_only_on_the_announcing_host_or_where_its_token_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let at = |mesh: &Running, address: &str| {
        let mut announce = announce(mesh, GREEDY, "g1", 1);
        announce.endpoint.as_mut().unwrap().address = address.into();
        announce
    };
    let greedy = mesh.sidecar(GREEDY).await;
    let refused = Announcing::open(&greedy, at(&mesh, "192.0.2.1:443")).await.refusal().await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(Announcing::open(&greedy, at(&mesh, "127.0.1.9:15006")).await.answer().await.is_ok(), "the same host");

    let networks = ["192.0.2.0/24".parse().unwrap()];
    let token = join_token::issue_for(&mesh.ca, &mesh.id(GREEDY), &networks, HOUR).unwrap();
    mesh.sign(mesh.channel(None).await.unwrap(), token).await.unwrap();
    assert!(Announcing::open(&greedy, at(&mesh, "192.0.2.1:443")).await.answer().await.is_ok(), "its token allows it");
    let elsewhere = Announcing::open(&greedy, at(&mesh, "198.51.100.1:443")).await.refusal().await;
    assert_eq!(elsewhere.code(), Code::PermissionDenied, "{elsewhere}");
    mesh.stop().await;
    let mesh = Running::start(dir.path()).await;
    let greedy = mesh.sidecar(GREEDY).await;
    assert!(
        Announcing::open(&greedy, at(&mesh, "192.0.2.1:443")).await.answer().await.is_ok(),
        "the token's networks are saved"
    );
    mesh.stop().await;
}

#[tokio::test]
async fn impossible_names_are_answered_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let greedy = mesh.sidecar(GREEDY).await;
    let mut watching = Watching::open(&greedy).await;
    // More names than one stream may follow: none of them is kept.
    let long = "x".repeat(60_000);
    for number in 0..200 {
        let name = format!("{long}{number}");
        watching.ask(watch_request::What::SubscribeContract(name.clone())).await;
        let What::NotFound(told) = watching.next().await else { panic!() };
        assert_eq!((told.what.unwrap(), &*told.closest), (not_found::What::Contract(name), ""));
    }
    for address in ["no address", "10.0.0.1"] {
        watching.ask(watch_request::What::SubscribeAddress(address.into())).await;
        assert!(matches!(watching.next().await, What::NotFound(_)));
    }
    let mut contracts = ContractsClient::new(greedy);
    for what in [
        describe_contract_request::What::Symbol(long.clone()),
        describe_contract_request::What::File(long.clone()),
        describe_contract_request::What::Extendee(long.clone()),
    ] {
        let refused = contracts.describe(DescribeContractRequest { what: Some(what) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let name = "shop.x.".repeat(100);
    let what = Some(describe_contract_request::What::Symbol(name));
    let unknown = contracts.describe(DescribeContractRequest { what }).await.unwrap_err();
    assert!(unknown.code() == Code::NotFound && unknown.message().len() < 300, "{unknown}");
    mesh.stop().await;
}

#[tokio::test]
async fn streams_end_with_the_svid_of_their_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let key = WorkloadKey::generate().unwrap();
    let request = key.signing_request().unwrap();
    let issued = mesh.ca.sign_for(&request, &mesh.id("users.shop"), Duration::from_secs(10)).unwrap();
    let users = mesh.channel(Some(&key.into_svid(issued.chain_der).unwrap())).await.unwrap();
    let mut announcing = Announcing::open(&users, announce(&mesh, "users.shop", "u1", 7001)).await;
    announcing.answer().await.unwrap();
    let mut watching = Watching::open(&users).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    assert!(matches!(watching.next().await, What::Snapshot(_)));
    let mut bundles = IdentityClient::new(users).watch_bundle(WatchBundleRequest {}).await.unwrap().into_inner();
    timeout(SOON, bundles.message()).await.unwrap().unwrap().unwrap();

    let mut honest = Watching::open(&mesh.sidecar("orders.shop").await).await;
    honest.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    honest.health_becomes("u1", Health::Up).await;
    // A sidecar that renewed its SVID has announced itself again by then, so the end of the older stream has no effect.
    let renewed = mesh.sidecar("users.shop").await;
    let mut newer = Announcing::open(&renewed, announce(&mesh, "users.shop", "u1", 7001)).await;
    newer.answer().await.unwrap();
    assert_eq!(announcing.refusal().await.code(), Code::Unauthenticated);
    let told = timeout(SOON, async {
        loop {
            match watching.answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(told.await.unwrap().code(), Code::Unauthenticated);
    assert_eq!(timeout(SOON, bundles.message()).await.unwrap().unwrap_err().code(), Code::Unauthenticated);
    newer.say(announce_request::What::Heartbeat(Heartbeat { health: Health::Draining.into() })).await;
    // A snapshot may come before it: the registry settles in the meantime.
    let told = loop {
        let endpoints = match honest.next().await {
            What::Snapshot(service) => service.endpoints,
            What::Change(change) => change.upserted,
            other => panic!("{other:?}"),
        };
        let told: Vec<_> = endpoints.iter().map(|e| (&*e.id, e.health())).collect();
        match &*told {
            [("u1", Health::Up)] => {}
            _ => break format!("{told:?}"),
        }
    };
    assert_eq!(told, format!("{:?}", [("u1", Health::Draining)]), "the endpoint flapped");
    mesh.stop().await;
}

#[tokio::test]
async fn the_key_of_an_expired_svid_gets_a_new_one_and_another_key_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let old = WorkloadKey::generate().unwrap();
    let request = old.signing_request().unwrap();
    let issued = mesh.ca.sign_for(&request, &mesh.id("users.shop"), Duration::from_secs(2)).unwrap();
    let old = old.into_svid(issued.chain_der).unwrap();
    timeout(SOON, async {
        while old.not_after() > std::time::SystemTime::now() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    let key = WorkloadKey::generate().unwrap();
    let csr_der = key.signing_request().unwrap();
    let late = SignRequest {
        expired_svid_der: Bytes::copy_from_slice(old.leaf()),
        expired_svid_proof: old.prove_late(&csr_der).unwrap().into(),
        csr_der: csr_der.into(),
        join_token: String::new(),
    };
    let mut client = IdentityClient::new(mesh.channel(None).await.unwrap());
    let other = WorkloadKey::generate().unwrap().signing_request().unwrap();
    let refused = client.sign(SignRequest { csr_der: other.into(), ..late.clone() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let signed = client.sign(late).await.unwrap().into_inner();
    assert_eq!(signed.spiffe_id, mesh.id("users.shop").to_string());
    mesh.stop().await;
}

/// A TLS connection without an SVID on which nothing is sent.
async fn silent(mesh: &Running) -> tokio_rustls::client::TlsStream<TcpStream> {
    let control = SpiffeId::of_control_plane(mesh.ca.trust_domain());
    let name = tls::server_name(&control);
    let config = tls::client_config(None, mesh.ca.bundle(), control).unwrap();
    let stream = TcpStream::connect(mesh.grpc).await.unwrap();
    TlsConnector::from(config).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn a_silent_stranger_is_disconnected_and_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let few = Budget { strangers: 8, strangers_of_network: 6, members: 100 };
    let mesh = Running::start_with(dir.path(), few).await;
    let users = mesh.sidecar("users.shop").await;
    let mut announcing = Announcing::open(&users, announce(&mesh, "users.shop", "u1", 7001)).await;
    announcing.answer().await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..4 {
        strangers.push(silent(&mesh).await);
    }
    // More strangers than allowed: there is no room until one of them has waited long enough.
    let plain: Vec<TcpStream> = futures_util::future::join_all((0..10).map(|_| TcpStream::connect(mesh.grpc)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    timeout(SOON, async {
        // It tries again, like a sidecar.
        while mesh.channel(None).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    announcing.say(announce_request::What::Heartbeat(Heartbeat { health: Health::Up.into() })).await;
    for mut stranger in strangers {
        let mut rest = Vec::new();
        let _ = timeout(SOON, stranger.read_to_end(&mut rest)).await.expect("it is disconnected");
    }
    drop(plain);
    let mut watching = Watching::open(&users).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    watching.health_becomes("u1", Health::Up).await;
    mesh.stop().await;
}

/// An announcement with these descriptors, which are not known yet.
fn describing(mesh: &Running, id: &str, port: u16, descriptors: &[u8]) -> Announce {
    let descriptors_sha256 = Bytes::copy_from_slice(&Sha256::digest(descriptors));
    Announce { descriptors_sha256, ..announce(mesh, GREEDY, id, port) }
}

#[tokio::test]
async fn the_streams_of_one_connection_are_limited_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let greedy = mesh.sidecar(GREEDY).await;
    let mut open = Vec::new();
    for number in 0..4 {
        let id = format!("g{number}");
        let mut announcing = Announcing::open(&greedy, announce(&mesh, GREEDY, &id, 7000 + number)).await;
        announcing.answer().await.unwrap();
        let mut bundles = IdentityClient::new(greedy.clone()).watch_bundle(WatchBundleRequest {}).await.unwrap();
        timeout(SOON, bundles.get_mut().message()).await.unwrap().unwrap().unwrap();
        open.push((announcing, Watching::open(&greedy).await, bundles));
    }
    let (_requests, queue) = mpsc::channel::<WatchRequest>(1);
    let refused = DiscoveryClient::new(greedy.clone()).watch(ReceiverStream::new(queue)).await.unwrap_err();
    assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("4 open streams of Watch"));
    let (_requests, queue) = mpsc::channel::<AnnounceRequest>(1);
    let refused = RegistryClient::new(greedy.clone()).announce(ReceiverStream::new(queue)).await.unwrap_err();
    assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("4 open streams of Announce"));
    let refused = IdentityClient::new(greedy.clone()).watch_bundle(WatchBundleRequest {}).await.unwrap_err();
    assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("4 open streams of WatchBundle"));
    // A stream that ends makes room, and another connection has streams of its own.
    open.pop();
    timeout(SOON, async {
        while IdentityClient::new(greedy.clone()).watch_bundle(WatchBundleRequest {}).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let mut honest = Watching::open(&mesh.sidecar(GREEDY).await).await;
    honest.ask(watch_request::What::SubscribeService(GREEDY.into())).await;
    assert!(matches!(honest.next().await, What::Snapshot(_)));
    mesh.stop().await;
}

#[tokio::test]
async fn a_large_message_is_accepted_only_when_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let greedy = mesh.sidecar(GREEDY).await;
    let large = Bytes::from(vec![b'x'; weft_mesh::limits::ANNOUNCEMENT_BYTES + 1]);
    let mut unasked = Announcing::open(&greedy, announce(&mesh, GREEDY, "g1", 7001)).await;
    assert!(!unasked.answer().await.unwrap().send_descriptors);
    unasked.say(announce_request::What::Descriptors(large.clone())).await;
    let refused = unasked.refusal().await;
    assert!(refused.code() == Code::OutOfRange && refused.message().contains("allowed"), "{refused}");
    let mut asked = Announcing::open(&greedy, describing(&mesh, "g2", 7002, &large)).await;
    assert!(asked.answer().await.unwrap().send_descriptors);
    asked.say(announce_request::What::Descriptors(large.clone())).await;
    assert!(asked.answer().await.unwrap().descriptors_refused.contains("FileDescriptorSet"));
    asked.say(announce_request::What::Descriptors(large)).await;
    assert_eq!(asked.refusal().await.code(), Code::OutOfRange, "it was asked for only once");
    mesh.stop().await;
}

#[tokio::test]
async fn few_streams_of_one_identity_send_descriptors_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let set = weft_contracts::FILE_DESCRIPTOR_SET;
    let (one, two) = (mesh.sidecar(GREEDY).await, mesh.sidecar(GREEDY).await);
    let mut asked = Vec::new();
    for number in 0..4 {
        let id = format!("g{number}");
        let mut announcing = Announcing::open(&one, describing(&mesh, &id, 7000 + number, set)).await;
        assert!(announcing.answer().await.unwrap().send_descriptors);
        asked.push(announcing);
    }
    let mut same = Announcing::open(&two, describing(&mesh, "same", 7010, set)).await;
    assert!(!same.answer().await.unwrap().send_descriptors, "it waits for its turn");
    let mut other = Announcing::open(&two, describing(&mesh, "other", 7011, b"another")).await;
    assert!(!other.answer().await.unwrap().send_descriptors, "it waits for its turn");
    // Other identities do not wait.
    let mut users =
        Announcing::open(&mesh.sidecar("users.shop").await, users_with_descriptors(&mesh, "u1", 7001)).await;
    assert!(users.answer().await.unwrap().send_descriptors);
    for announcing in &mut asked[..2] {
        announcing.say(announce_request::What::Descriptors(Bytes::from_static(set))).await;
    }
    assert!(other.answer().await.unwrap().send_descriptors, "its turn has come");
    other.say(announce_request::What::Descriptors(Bytes::from_static(b"nonsense"))).await;
    assert!(other.answer().await.unwrap().descriptors_refused.contains("SHA-256"));
    // A replica has sent the same set, so this stream is not asked for it.
    same.say(announce_request::What::Announce(describing(&mesh, "same", 7010, set))).await;
    assert!(!same.answer().await.unwrap().send_descriptors);
    mesh.stop().await;
}

/// Asks a question of `weft.discovery.v1.Contracts`. Returns the head of the answer, without reading its body.
async fn unread(mut channel: Channel, method: &str, question: &[u8]) -> http::Response<Body> {
    let framed = [&[0], &u32::try_from(question.len()).unwrap().to_be_bytes()[..], question].concat();
    let request = http::Request::post(format!("http://control.weft/weft.discovery.v1.Contracts/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(framed))))
        .unwrap();
    channel.ready().await.unwrap().call(request).await.unwrap()
}

#[tokio::test]
async fn an_identity_that_reads_no_answers_gets_few_and_others_get_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let users = mesh.sidecar("users.shop").await;
    let mut announcing = Announcing::open(&users, users_with_descriptors(&mesh, "u1", 7001)).await;
    announcing.answer().await.unwrap();
    let set = Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET);
    announcing.say(announce_request::What::Descriptors(set)).await;
    assert!(announcing.answer().await.unwrap().is_described);
    let describe = |what| DescribeContractRequest { what: Some(what) }.encode_to_vec();
    let questions = [
        ("ListServices", Vec::new()),
        ("Describe", describe(describe_contract_request::What::Extendee("google.protobuf.MethodOptions".into()))),
        ("Describe", describe(describe_contract_request::What::Symbol("shop.users.v1.Users".into()))),
    ];
    for (method, question) in &questions {
        // One byte of each answer may be sent.
        let narrow = ChannelEndpoint::from_static("http://control.weft").initial_stream_window_size(1);
        let greedy = mesh.channel_of(narrow, Some(&mesh.join(GREEDY).await)).await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..limits::ANSWERS_AT_ONCE {
            answers.push(timeout(SOON, unread(greedy.clone(), method, question)).await.unwrap());
        }
        let mut next = Box::pin(unread(greedy, method, question));
        let early = timeout(Duration::from_millis(200), &mut next).await;
        assert!(early.is_err(), "{method}: the answers before it are not read");
        let mut honest = ContractsClient::new(users.clone());
        let services = timeout(SOON, honest.list_services(ListServicesRequest {})).await.unwrap().unwrap();
        assert_eq!(services.into_inner().services.len(), 1);
        answers.pop();
        timeout(SOON, next).await.unwrap();
    }
    mesh.stop().await;
}
