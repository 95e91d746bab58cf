//! A compromised member that looks for services: with `visibility: namespace` it sees only those of its own namespace.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};
use weft_contracts::weft::discovery::v1::{
    Announce, ContestedClaim, DescribeContractRequest, Endpoint, Health, ListContractsRequest, ListServicesRequest,
    Protocol, WatchRequest, contracts_client::ContractsClient, describe_contract_request,
    discovery_client::DiscoveryClient, watch_request::What, watch_response,
};
use weft_tests::{Announced, Bed, Forge, Member, eventually, probe, probe_service};

const SOON: Duration = Duration::from_secs(60);
const SPY: &str = "spiffe://weft.local/ns/bank/sa/spy";
const NEIGHBOUR: &str = "spiffe://weft.local/ns/shop/sa/web";
const CONTRACT: &str = "probe.v1.Probe";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_of_another_namespace_sees_no_service() {
    let bed = Bed::start(&format!("{}visibility: namespace\n", probe_service(1))).await;
    let ca = Forge::stolen(&bed);
    let of = |id: &str| Member::new(&ca, Some(ca.good(id))).control(&bed);
    let (spy, neighbour) = (of(SPY), of(NEIGHBOUR));

    // Once the descriptors have come, a member of the same namespace sees them. The spy never does.
    eventually("its neighbour can describe it", SOON, async || describe(&neighbour).await == Code::Ok).await;
    assert_eq!(describe(&spy).await, Code::NotFound);
    assert_eq!(listed(&neighbour).await, (vec![CONTRACT.to_owned()], vec!["probe.shop".to_owned()]));
    assert_eq!(listed(&spy).await, (vec![], vec![]));
    // The address is the probe's own, which its sidecar announces as well.
    let address = format!("127.0.0.1:{}", bed.ports("probe-1").app);
    for what in [
        What::SubscribeService("probe.shop".into()),
        What::SubscribeContract(CONTRACT.into()),
        What::SubscribeAddress(address),
    ] {
        let told = watch(&neighbour, what.clone()).await;
        assert!(!matches!(told, watch_response::What::NotFound(_)), "{what:?}: {told:?}");
        let watch_response::What::NotFound(told) = watch(&spy, what.clone()).await else {
            panic!("{what:?} is visible")
        };
        assert_eq!(told.closest, "", "{what:?}: no name is suggested");
    }
    // A claim on a foreign contract tells the spy that it is contested, but not who owns it.
    for (control, service, id, owner) in
        [(&neighbour, "web.shop", NEIGHBOUR, "spiffe://weft.local/ns/shop/sa/probe"), (&spy, "spy.bank", SPY, "")]
    {
        let told = claim(control, service, id).await;
        assert_eq!((&*told.claim, &*told.owner), (CONTRACT, owner), "{service}");
    }
    probe(&bed.channel(), "Say", &[]).await.expect("a caller in the namespace is answered");
}

/// Claims the probe's contract, and returns the control plane's answer.
async fn claim(channel: &Channel, service: &str, id: &str) -> ContestedClaim {
    let endpoint = Endpoint {
        id: service.into(),
        address: "127.0.0.1:9".into(),
        spiffe_id: id.into(),
        health: Health::Up.into(),
        ..Endpoint::default()
    };
    let announce = Announce {
        service: service.into(),
        endpoint: Some(endpoint),
        protocol: Protocol::Http2.into(),
        contracts: vec![CONTRACT.into()],
        ..Announce::default()
    };
    let announced = Announced::open(channel, announce).await.expect("a member may announce");
    announced.answer.contested[0].clone()
}

/// The first answer to a subscription.
async fn watch(channel: &Channel, what: What) -> watch_response::What {
    let (requests, queue) = mpsc::channel(1);
    requests.send(WatchRequest { what: Some(what) }).await.expect("there is room");
    let watch = DiscoveryClient::new(channel.clone()).watch(ReceiverStream::new(queue)).await;
    let mut answers = watch.expect("a member may watch").into_inner();
    let answer = timeout(SOON, answers.message()).await.expect("an answer").expect("the stream is open");
    answer.and_then(|answer| answer.what).expect("something")
}

async fn describe(channel: &Channel) -> Code {
    let what = Some(describe_contract_request::What::Symbol(CONTRACT.into()));
    let answer = ContractsClient::new(channel.clone()).describe(DescribeContractRequest { what }).await;
    answer.err().map_or(Code::Ok, |status| status.code())
}

/// All contracts, and all services.
async fn listed(channel: &Channel) -> (Vec<String>, Vec<String>) {
    let mut contracts = ContractsClient::new(channel.clone());
    let names = contracts.list(ListContractsRequest {}).await.expect("a member may ask").into_inner().contracts;
    let services = contracts.list_services(ListServicesRequest {}).await.expect("a member may ask").into_inner();
    (names, services.services.into_iter().map(|service| service.name).collect())
}
