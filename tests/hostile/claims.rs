//! A compromised member: it holds a valid SVID, and claims what is another's.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use weft_contracts::weft::discovery::v1::{
    self as discovery, Announce, AnnounceRequest, AnnounceResponse, Health, Protocol, announce_request::What,
    registry_client::RegistryClient,
};
use weft_control::ca::Ca;
use weft_mesh::{
    identity::SpiffeId,
    tls::{Svid, WorkloadKey, client_config, install_crypto_provider, server_name},
};
use weft_tests::{Bed, eventually, get, probe, probe_service};

const SOON: Duration = Duration::from_secs(60);
const IMPOSTOR: &str = "spiffe://weft.local/ns/shop/sa/impostor";
const PROBE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const CONTRACT: &str = "probe.v1.Probe";
const UNHEARD_OF: &str = "probe.v2.Probe";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_takes_over_no_contract_and_sends_calls_to_no_other_host() {
    install_crypto_provider();
    let bed = Bed::start(&probe_service(1)).await;
    let registry = RegistryClient::new(channel(&bed));

    let refused = announce(&registry, "192.0.2.1:443").await.err().expect("it is a foreign address");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let member = announce(&registry, "127.0.0.1:9").await.expect("it may be on its own host");
    let contested = &member.answer.contested;
    assert_eq!(contested.len(), 1, "{contested:?}");
    assert_eq!((&*contested[0].claim, &*contested[0].owner), (CONTRACT, PROBE));
    assert_eq!(member.answer.unlisted, [UNHEARD_OF], "mesh.yaml says which contracts there are");

    // Its one replica leaves and comes back, while the member is there all the time.
    let restarted = bed.weft(&["restart", "probe"]);
    assert!(restarted.status.success(), "{}", String::from_utf8_lossy(&restarted.stderr));
    for _ in 0..20 {
        probe(&bed.channel(), "Say", &[]).await.expect("the contract is the probe's");
    }

    eventually("the log names both", SOON, async || {
        bed.log().lines().any(|line| line.contains("contested") && line.contains(PROBE) && line.contains(IMPOSTOR))
    })
    .await;
    let (_, page) = get(bed.dashboard(), "/").await;
    assert!(page.contains("Contested claims") && page.contains(IMPOSTOR), "{page}");
    eventually("`weft check` tells it", SOON, async || {
        let told = bed.weft(&["check"]);
        String::from_utf8_lossy(&told.stdout).contains(&format!("{CONTRACT} is contested: it belongs to {PROBE}"))
    })
    .await;
}

/// An endpoint that is announced for as long as this is held.
struct Member {
    answer: AnnounceResponse,
    _requests: mpsc::Sender<AnnounceRequest>,
    _answers: Streaming<AnnounceResponse>,
}

async fn announce(registry: &RegistryClient<Channel>, address: &str) -> Result<Member, Status> {
    let announce = Announce {
        service: "impostor.shop".into(),
        endpoint: Some(discovery::Endpoint {
            id: format!("impostor-at-{address}"),
            address: address.into(),
            spiffe_id: IMPOSTOR.into(),
            health: Health::Up.into(),
            silent: false,
        }),
        protocol: Protocol::Http2.into(),
        contracts: vec![CONTRACT.into(), UNHEARD_OF.into()],
        ..Announce::default()
    };
    let (requests, queue) = mpsc::channel(1);
    requests.send(AnnounceRequest { what: Some(What::Announce(announce)) }).await.expect("there is room");
    let mut answers = registry.clone().announce(ReceiverStream::new(queue)).await?.into_inner();
    let answer = answers.message().await?.expect("an answer");
    Ok(Member { answer, _requests: requests, _answers: answers })
}

/// A channel to the control plane that shows the member's SVID.
fn channel(bed: &Bed) -> Channel {
    let id = |text: &str| -> SpiffeId { text.parse().expect("a SPIFFE ID") };
    let control = id("spiffe://weft.local/ns/weft/sa/control");
    let trust_domain = "weft.local".parse().expect("a trust domain");
    let ca = Ca::open_or_create(&bed.state_dir().join("control"), &trust_domain).expect("the mesh has a CA");
    let svid = svid(&ca, &id(IMPOSTOR));
    let config = client_config(Some(&svid), ca.bundle(), control.clone()).expect("a configuration");
    let (connector, port) = (TlsConnector::from(config), bed.control());
    let connect = move |_: http::Uri| {
        let (connector, name) = (connector.clone(), server_name(&control));
        async move {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    };
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).expect("a URL");
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

fn svid(ca: &Ca, id: &SpiffeId) -> Svid {
    let key = WorkloadKey::generate().expect("a key");
    let issued = ca.sign(&key.signing_request().expect("a request"), id).expect("it is signed");
    key.into_svid(issued.chain_der).expect("an SVID")
}
