//! A compromised member with a valid SVID, which claims what belongs to others.

use std::time::Duration;

use tonic::{Code, Status, transport::Channel};
use weft_contracts::weft::discovery::v1::{self as discovery, Announce, Health, Protocol};
use weft_tests::{Announced, Bed, Forge, Member, eventually, get, probe, probe_service};

const SOON: Duration = Duration::from_secs(60);
const IMPOSTOR: &str = "spiffe://weft.local/ns/shop/sa/impostor";
const PROBE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const CONTRACT: &str = "probe.v1.Probe";
const UNKNOWN_CONTRACT: &str = "probe.v2.Probe";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_cannot_take_over_a_contract_or_announce_another_host() {
    let bed = Bed::start(&probe_service(1)).await;
    let ca = Forge::stolen(&bed);
    let control = Member::new(&ca, Some(ca.good(IMPOSTOR))).control(&bed);

    let refused = announce(&control, "192.0.2.1:443").await.err().expect("it is a foreign address");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let member = announce(&control, "127.0.0.1:9").await.expect("it may announce its own host");
    let contested = &member.answer.contested;
    assert_eq!(contested.len(), 1, "{contested:?}");
    assert_eq!((&*contested[0].claim, &*contested[0].owner), (CONTRACT, PROBE));
    assert_eq!(member.answer.unlisted, [UNKNOWN_CONTRACT], "mesh.yaml says which contracts there are");

    // The probe's only replica leaves and comes back. The member stays all the time.
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
    eventually("`weft check` reports it", SOON, async || {
        let told = bed.weft(&["check"]);
        String::from_utf8_lossy(&told.stdout).contains(&format!("{CONTRACT} is contested: it belongs to {PROBE}"))
    })
    .await;
}

async fn announce(control: &Channel, address: &str) -> Result<Announced, Status> {
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
        contracts: vec![CONTRACT.into(), UNKNOWN_CONTRACT.into()],
        ..Announce::default()
    };
    Announced::open(control, announce).await
}
