//! The control plane as sidecars see it, over real sockets and TLS.

mod hostile;
mod kubernetes;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint as ChannelEndpoint, Uri},
};
use weft_contracts::weft::{
    discovery::v1::{
        Announce, AnnounceRequest, AnnounceResponse, Deregister, DescribeContractRequest, Endpoint, Health, Heartbeat,
        ListContractsRequest, ListServicesRequest, Protocol, WatchRequest, WatchResponse, announce_request,
        contracts_client::ContractsClient, describe_contract_request, discovery_client::DiscoveryClient,
        registry_client::RegistryClient, watch_request, watch_response::What,
    },
    identity::v1::{SignRequest, WatchBundleRequest, identity_client::IdentityClient},
};
use weft_mesh::{
    identity::SpiffeId,
    telemetry::LogFormat,
    tls::{self, Svid, TrustBundle, WorkloadKey},
};

use crate::{
    Args,
    authority::{ca::Ca, join_token},
    grpc::admission::Budget,
    kubernetes::cluster::Cluster,
    run::ControlPlane,
};

const HOUR: Duration = Duration::from_secs(3600);
/// A guard for what happens at once if all is well.
const SOON: Duration = Duration::from_secs(60);
const USERS: &str = "shop.users.v1.Users";

struct Running {
    ca: Ca,
    grpc: SocketAddr,
    dashboard: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(state_dir: &Path) -> Self {
        Self::start_with(state_dir, Budget::of_files(1 << 20)).await
    }

    async fn start_with(state_dir: &Path, budget: Budget) -> Self {
        Self::start_of(state_dir, budget, None, None).await
    }

    /// With a file of `--services`, or in a cluster.
    async fn start_of(
        state_dir: &Path,
        budget: Budget,
        services: Option<PathBuf>,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        tls::install_crypto_provider();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let args = Args {
            state_dir: state_dir.to_owned(),
            listen: any,
            dashboard: any,
            dashboard_host: Vec::new(),
            remote_spans: false,
            services,
            access: None,
            kubernetes: false,
            webhook: None,
            inject_config: None,
            pod: None,
            health: None,
            trust_domain: "weft.test".parse().unwrap(),
            log_format: LogFormat::Text,
        };
        let control_plane = ControlPlane::bind(&args, budget, CancellationToken::new()).await.unwrap();
        let control_plane = match cluster {
            Some(cluster) => control_plane.in_cluster(cluster),
            None => control_plane,
        };
        let (grpc, dashboard) = control_plane.addresses();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(control_plane.serve(stop.clone()));
        Self { ca: Ca::open_or_create(state_dir, &args.trust_domain).unwrap(), grpc, dashboard, stop, serving }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.serving).await.unwrap().unwrap().unwrap();
    }

    fn id(&self, service: &str) -> SpiffeId {
        SpiffeId::of_service(self.ca.trust_domain(), &service.parse_name())
    }

    async fn channel(&self, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        self.channel_of(ChannelEndpoint::from_static("http://control.weft"), svid).await
    }

    async fn channel_of(
        &self,
        endpoint: ChannelEndpoint,
        svid: Option<&Svid>,
    ) -> Result<Channel, tonic::transport::Error> {
        let control = SpiffeId::of_control_plane(self.ca.trust_domain());
        let name = tls::server_name(&control);
        let connector = TlsConnector::from(tls::client_config(svid, self.ca.bundle(), control).unwrap());
        let address = self.grpc;
        let connect = tower::service_fn(move |_: Uri| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        endpoint.connect_with_connector(connect).await
    }

    /// Gets a first identity, like a sidecar.
    async fn join(&self, service: &str) -> Svid {
        let token = join_token::issue(&self.ca, &self.id(service), HOUR).unwrap();
        self.sign(self.channel(None).await.unwrap(), token).await.unwrap()
    }

    async fn sign(&self, channel: Channel, join_token: String) -> Result<Svid, Status> {
        let key = WorkloadKey::generate().unwrap();
        let csr_der = Bytes::from(key.signing_request().unwrap());
        let signed = IdentityClient::new(channel)
            .sign(SignRequest { csr_der, join_token, ..SignRequest::default() })
            .await?
            .into_inner();
        let bundle = TrustBundle::from_der(signed.bundle_der.iter().map(|der| der.to_vec())).unwrap();
        assert_eq!(&bundle, self.ca.bundle());
        Ok(key.into_svid(signed.chain_der.iter().map(|der| der.to_vec()).collect()).unwrap())
    }

    async fn sidecar(&self, service: &str) -> Channel {
        let svid = self.join(service).await;
        self.channel(Some(&svid)).await.unwrap()
    }
}

trait ParseName {
    fn parse_name(&self) -> weft_mesh::names::ServiceName;
}

impl ParseName for str {
    fn parse_name(&self) -> weft_mesh::names::ServiceName {
        weft_mesh::names::ServiceName::parse(self).unwrap()
    }
}

fn announce(running: &Running, service: &str, id: &str, port: u16) -> Announce {
    Announce {
        service: service.into(),
        endpoint: Some(Endpoint {
            id: id.into(),
            address: format!("127.0.0.1:{port}"),
            spiffe_id: running.id(service).to_string(),
            health: Health::Up.into(),
            silent: false,
        }),
        protocol: Protocol::Http2.into(),
        contracts: Vec::new(),
        addresses: Vec::new(),
        descriptors_sha256: Bytes::new(),
    }
}

fn users_with_descriptors(running: &Running, id: &str, port: u16) -> Announce {
    Announce {
        contracts: vec![USERS.into()],
        descriptors_sha256: Bytes::copy_from_slice(&Sha256::digest(weft_contracts::FILE_DESCRIPTOR_SET)),
        ..announce(running, "users.shop", id, port)
    }
}

/// The sidecar's side of an announcing stream.
struct Announcing {
    say: mpsc::Sender<AnnounceRequest>,
    answers: Streaming<AnnounceResponse>,
}

impl Announcing {
    async fn open(channel: &Channel, announce: Announce) -> Self {
        let (say, requests) = mpsc::channel(8);
        let announcing = AnnounceRequest { what: Some(announce_request::What::Announce(announce)) };
        say.send(announcing).await.unwrap();
        let answers = RegistryClient::new(channel.clone()).announce(ReceiverStream::new(requests)).await.unwrap();
        Self { say, answers: answers.into_inner() }
    }

    async fn say(&self, what: announce_request::What) {
        self.say.send(AnnounceRequest { what: Some(what) }).await.unwrap();
    }

    async fn answer(&mut self) -> Result<AnnounceResponse, Status> {
        timeout(SOON, self.answers.message()).await.unwrap().map(|answer| answer.expect("the stream goes on"))
    }

    /// The status with which the control plane ended the stream.
    async fn refusal(&mut self) -> Status {
        self.answer().await.unwrap_err()
    }
}

struct Watching {
    ask: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watching {
    async fn open(channel: &Channel) -> Self {
        let (ask, requests) = mpsc::channel(8);
        let answers = DiscoveryClient::new(channel.clone()).watch(ReceiverStream::new(requests)).await.unwrap();
        Self { ask, answers: answers.into_inner() }
    }

    async fn ask(&self, what: watch_request::What) {
        self.ask.send(WatchRequest { what: Some(what) }).await.unwrap();
    }

    async fn next(&mut self) -> What {
        timeout(SOON, self.answers.message()).await.unwrap().unwrap().unwrap().what.unwrap()
    }

    /// Waits until the answers show this health of an endpoint.
    async fn health_becomes(&mut self, id: &str, health: Health) {
        loop {
            let endpoints = match self.next().await {
                What::Snapshot(service) => service.endpoints,
                What::Change(change) => change.upserted,
                other => panic!("{other:?}"),
            };
            if endpoints.iter().any(|e| e.id == id && e.health() == health) {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_watcher_sees_a_sidecar_join_break_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let orders = mesh.sidecar("orders.shop").await;
    let mut watching = Watching::open(&orders).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    let What::NotFound(not_found) = watching.next().await else { panic!() };
    assert!(!not_found.complete);

    let users = mesh.sidecar("users.shop").await;
    let mut announcing = Announcing::open(&users, users_with_descriptors(&mesh, "u1", 7001)).await;
    let answer = announcing.answer().await.unwrap();
    assert_eq!(answer.heartbeat_interval.unwrap().seconds, 5);
    assert!(answer.send_descriptors);
    watching.health_becomes("u1", Health::Up).await;
    announcing.say(announce_request::What::Descriptors(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET))).await;
    loop {
        let What::Snapshot(service) = watching.next().await else { continue };
        let policy = service.policy.unwrap();
        if policy.contracts[0].methods.iter().any(|m| m.name == "Create") {
            assert_eq!(policy.contracts.len(), 1);
            break;
        }
    }

    announcing.say(announce_request::What::Heartbeat(Heartbeat { health: Health::Draining.into() })).await;
    watching.health_becomes("u1", Health::Draining).await;
    announcing.say(announce_request::What::Heartbeat(Heartbeat { health: Health::Up.into() })).await;
    watching.health_becomes("u1", Health::Up).await;
    // The sidecar dies: its stream breaks without a `Deregister`.
    drop((announcing, users));
    watching.health_becomes("u1", Health::Down).await;

    let users = mesh.sidecar("users.shop").await;
    let mut announcing = Announcing::open(&users, users_with_descriptors(&mesh, "u1", 7001)).await;
    assert!(!announcing.answer().await.unwrap().send_descriptors);
    watching.health_becomes("u1", Health::Up).await;
    announcing.say(announce_request::What::Deregister(Deregister {})).await;
    loop {
        match watching.next().await {
            What::Change(change) => break assert_eq!(change.removed_ids, ["u1"]),
            // The registry settles in the meantime.
            What::Snapshot(_) => {}
            other => panic!("{other:?}"),
        }
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_peer_without_an_svid_may_only_ask_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let stranger = mesh.channel(None).await.unwrap();
    let unauthenticated = |status: Status| assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let silence = || ReceiverStream::new(mpsc::channel::<AnnounceRequest>(1).1);
    unauthenticated(RegistryClient::new(stranger.clone()).announce(silence()).await.unwrap_err());
    let silence = || ReceiverStream::new(mpsc::channel::<WatchRequest>(1).1);
    unauthenticated(DiscoveryClient::new(stranger.clone()).watch(silence()).await.unwrap_err());
    unauthenticated(ContractsClient::new(stranger.clone()).list(ListContractsRequest {}).await.unwrap_err());
    unauthenticated(IdentityClient::new(stranger.clone()).watch_bundle(WatchBundleRequest {}).await.unwrap_err());
    unauthenticated(mesh.sign(stranger.clone(), String::new()).await.unwrap_err());
    unauthenticated(mesh.sign(stranger.clone(), "forged.join.token".into()).await.unwrap_err());
    let control = SpiffeId::of_control_plane(mesh.ca.trust_domain());
    let greedy = join_token::issue(&mesh.ca, &control, HOUR).unwrap();
    unauthenticated(mesh.sign(stranger, greedy).await.unwrap_err());
    mesh.stop().await;
}

#[tokio::test]
async fn an_svid_renews_itself_and_one_of_another_ca_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let svid = mesh.join("users.shop").await;
    let renewed = mesh.sign(mesh.channel(Some(&svid)).await.unwrap(), String::new()).await.unwrap();
    assert_eq!(renewed.id(), svid.id());

    let foreign = tempfile::tempdir().unwrap();
    let foreign = Ca::open_or_create(foreign.path(), mesh.ca.trust_domain()).unwrap();
    let key = WorkloadKey::generate().unwrap();
    let issued = foreign.sign(&key.signing_request().unwrap(), svid.id()).unwrap();
    let forged = key.into_svid(issued.chain_der).unwrap();
    // In TLS 1.3 a client learns only after its own handshake that its certificate is refused.
    if let Ok(channel) = mesh.channel(Some(&forged)).await {
        let refused = ContractsClient::new(channel).list(ListContractsRequest {}).await;
        let why = refused.unwrap_err();
        assert!(matches!(why.code(), Code::Unavailable | Code::Unknown), "{why}");
        assert!(format!("{why:?}").contains("fatal alert"), "{why:?}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn announcements_of_another_identity_and_malformed_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let (users, orders) = (mesh.sidecar("users.shop").await, mesh.sidecar("orders.shop").await);
    let mut good = Announcing::open(&users, announce(&mesh, "users.shop", "u1", 7001)).await;
    good.answer().await.unwrap();

    let own = announce(&mesh, "orders.shop", "o1", 7002);
    let mut other_identity = own.clone();
    other_identity.endpoint.as_mut().unwrap().spiffe_id = mesh.id("users.shop").to_string();
    let mut no_address = own.clone();
    no_address.endpoint.as_mut().unwrap().address = "0.0.0.0:7002".into();
    let cases = [
        (announce(&mesh, "users.shop", "u2", 7003), Code::PermissionDenied),
        (other_identity, Code::PermissionDenied),
        (no_address, Code::InvalidArgument),
        (Announce { endpoint: None, ..own.clone() }, Code::InvalidArgument),
        (Announce { service: "orders".into(), ..own.clone() }, Code::InvalidArgument),
        (Announce { protocol: 0, ..own.clone() }, Code::InvalidArgument),
        (Announce { contracts: vec!["no name".into()], ..own.clone() }, Code::InvalidArgument),
        (Announce { descriptors_sha256: Bytes::from_static(b"short"), ..own }, Code::InvalidArgument),
    ];
    for (announce, code) in cases {
        let status = Announcing::open(&orders, announce.clone()).await.refusal().await;
        assert_eq!(status.code(), code, "{announce:?}: {status}");
    }
    let services = ContractsClient::new(orders).list_services(ListServicesRequest {}).await.unwrap().into_inner();
    assert_eq!(services.services.len(), 1);
    assert_eq!(services.services[0].endpoints[0].id, "u1");
    mesh.stop().await;
}

#[tokio::test]
async fn contracts_are_found_by_name_and_an_endpoint_with_bad_descriptors_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let users = mesh.sidecar("users.shop").await;
    let mut watching = Watching::open(&users).await;
    watching.ask(watch_request::What::SubscribeContract("shop.users.v1.User".into())).await;
    assert!(matches!(watching.next().await, What::NotFound(_)));

    let garbage = Bytes::from_static(b"\xff\xff");
    let bad = Announce {
        descriptors_sha256: Bytes::copy_from_slice(&Sha256::digest(&garbage)),
        ..users_with_descriptors(&mesh, "u1", 7001)
    };
    let mut announcing = Announcing::open(&users, bad.clone()).await;
    assert!(announcing.answer().await.unwrap().send_descriptors);
    announcing.say(announce_request::What::Descriptors(Bytes::from_static(b"something else"))).await;
    assert!(announcing.answer().await.unwrap().descriptors_refused.contains("SHA-256"));
    // Descriptors that were not asked for are not read and not answered.
    announcing.say(announce_request::What::Descriptors(Bytes::from_static(b"something else"))).await;
    announcing.say(announce_request::What::Announce(bad)).await;
    assert!(announcing.answer().await.unwrap().send_descriptors);
    announcing.say(announce_request::What::Descriptors(garbage)).await;
    assert!(announcing.answer().await.unwrap().descriptors_refused.contains("FileDescriptorSet"));
    watching.ask(watch_request::What::SubscribeContract(USERS.into())).await;
    let What::Owner(owner) = watching.next().await else { panic!() };
    assert_eq!(owner.service, "users.shop");
    let What::Snapshot(service) = watching.next().await else { panic!() };
    assert_eq!(service.endpoints[0].health(), Health::Up);
    assert!(service.policy.unwrap().contracts[0].methods.is_empty());

    let good = users_with_descriptors(&mesh, "u1", 7001);
    announcing.say(announce_request::What::Announce(good)).await;
    assert!(announcing.answer().await.unwrap().send_descriptors);
    announcing.say(announce_request::What::Descriptors(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET))).await;
    let described = |service: &weft_contracts::weft::discovery::v1::Service| {
        service.policy.as_ref().is_some_and(|policy| !policy.contracts[0].methods.is_empty())
    };
    while !matches!(watching.next().await, What::Snapshot(service) if described(&service)) {}

    let mut contracts = ContractsClient::new(users);
    assert_eq!(contracts.list(ListContractsRequest {}).await.unwrap().into_inner().contracts, [USERS]);
    let ask = |what| Request::new(DescribeContractRequest { what: Some(what) });
    let method = ask(describe_contract_request::What::Symbol(format!("{USERS}/Create")));
    assert!(!contracts.describe(method).await.unwrap().into_inner().files.is_empty());
    let extendee = ask(describe_contract_request::What::Extendee("google.protobuf.MethodOptions".into()));
    assert_eq!(contracts.describe(extendee).await.unwrap().into_inner().extension_numbers, [50901]);
    let misspelt = ask(describe_contract_request::What::Symbol("shop.users.v1.Userz".into()));
    let status = contracts.describe(misspelt).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("did you mean `shop.users.v1.User"), "{status}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_restarted_control_plane_accepts_old_svids_and_fills_its_registry_again() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let svid = mesh.join("users.shop").await;
    let users = mesh.channel(Some(&svid)).await.unwrap();
    let mut watching = Watching::open(&users).await;
    let mut announcing = Announcing::open(&users, announce(&mesh, "users.shop", "u1", 7001)).await;
    announcing.answer().await.unwrap();
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    let What::Snapshot(before) = watching.next().await else { panic!() };
    mesh.stop().await;
    // Streams that end with the stop do not count: no watcher may be told that members are down.
    let last = timeout(SOON, watching.answers.message()).await.unwrap();
    assert!(!matches!(last, Ok(Some(_))), "{last:?}");

    let mesh = Running::start(dir.path()).await;
    let users = mesh.channel(Some(&svid)).await.unwrap();
    let mut announcing = Announcing::open(&users, announce(&mesh, "users.shop", "u1", 7001)).await;
    announcing.answer().await.unwrap();
    let mut watching = Watching::open(&users).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    let What::Snapshot(after) = watching.next().await else { panic!() };
    assert_eq!(before.endpoints, after.endpoints);
    assert!(!after.complete);
    assert!(after.version.unwrap().epoch > before.version.unwrap().epoch);
    mesh.stop().await;
}

#[tokio::test]
async fn a_slow_handshake_delays_nobody_and_plain_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let _silent = TcpStream::connect(mesh.grpc).await.unwrap();
    mesh.join("users.shop").await;
    let mut plain = TcpStream::connect(mesh.grpc).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    // A TLS alert, then the end.
    let _ = timeout(SOON, plain.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.len() < 16);
    mesh.stop().await;
}

#[tokio::test]
async fn the_bundle_is_sent_at_once_and_when_a_root_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let users = mesh.sidecar("users.shop").await;
    let mut bundles = IdentityClient::new(users).watch_bundle(WatchBundleRequest {}).await.unwrap().into_inner();
    let first = timeout(SOON, bundles.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.bundle_der.len(), 1);

    let next = tempfile::tempdir().unwrap();
    Ca::open_or_create(next.path(), mesh.ca.trust_domain()).unwrap();
    let both = [dir.path().join("bundle.pem"), next.path().join("ca.pem")].map(|file| std::fs::read(file).unwrap());
    std::fs::write(dir.path().join("bundle.pem"), both.concat()).unwrap();
    let second = timeout(SOON, bundles.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(second.bundle_der.len(), 2);
    assert_eq!(second.bundle_der[0], first.bundle_der[0]);
    mesh.stop().await;
}

#[tokio::test]
async fn the_dashboard_reports_ready() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Running::start(dir.path()).await;
    let mut stream = TcpStream::connect(mesh.dashboard).await.unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    mesh.stop().await;
}
