//! A host vanishes silently: no FIN, no RST, and no answers. Calls to it or from it wait no longer than their deadline
//! or the keep-alive allows, and other calls do not notice.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;
use weft_tests::{Host, Net, Wire, channel, eventually, metric, probe, skip, until};

const LIMIT: Duration = Duration::from_secs(60);

const CLIENT: usize = 1;
const VANISHING: usize = 2;
const OTHER: usize = 3;
/// The ports of a sidecar with a service, and the outbound port of one without.
const OUTBOUND: u16 = 15_300;
const CLIENT_OUTBOUND: u16 = 15_001;
const METRICS: u16 = 15_200;

#[test]
fn a_host_that_vanishes_holds_up_no_other_call() {
    if let Err(why) = Net::is_possible() {
        return skip(&why);
    }
    let net = Net::of(4);
    net.start_control();
    let (client, vanishing, other) = (net.host(CLIENT), net.host(VANISHING), net.host(OTHER));
    net.start_service(&vanishing, 0, "probe", 9_000, "grpc", &[]);
    net.start_service(&other, 0, "other", 9_000, "grpc", &[]);
    net.start_sidecar(&client, "client", &[]);
    until("both services are up", || net.log().matches("HEALTH_UP").count() >= 2);

    // A call to the host that vanishes, and one from it, without a deadline.
    let to_it = client.beside(|| endless(CLIENT_OUTBOUND, "probe"));
    let from_it = vanishing.beside(|| endless(OUTBOUND, "other"));
    runs(&vanishing, 1.0);
    runs(&other, 1.0);
    vanish(&vanishing);
    client.within(|| async {
        let mut wire = Wire::connect(CLIENT_OUTBOUND).await;
        for _ in 0..5 {
            assert_eq!(call(&mut wire, "probe", "500m").await, Code::DeadlineExceeded);
            assert_eq!(call(&mut wire, "other", "60S").await, Code::Ok, "other services go on");
        }
    });
    // Each side gives up the connection on which nothing comes.
    let ends = [to_it, from_it].map(|call| call.join().expect("a call ends"));
    assert_eq!(ends, [Code::Unavailable; 2]);
    runs(&other, 0.0);

    vanishing.output("nft", &["delete table inet gone"]);
    client.within(|| async {
        let mut wire = Wire::connect(CLIENT_OUTBOUND).await;
        let is_answered = async || call(&mut wire, "probe", "5S").await == Code::Ok;
        eventually("a new connection is made", LIMIT, is_answered).await;
        assert_eq!(call(&mut wire, "other", "60S").await, Code::Ok, "other services go on");
    });
}

/// Drops all packets except those within the host.
fn vanish(host: &Host) {
    let mut rules = vec!["add table inet gone".to_owned()];
    for (chain, name) in [("input", "iifname"), ("output", "oifname")] {
        rules.push(format!("add chain inet gone {chain} {{ type filter hook {chain} priority 0 ; }}"));
        rules.push(format!("add rule inet gone {chain} {name} != \"lo\" drop"));
    }
    for rule in rules {
        host.output("nft", &[&rule]);
    }
}

/// Waits until this many calls run in the service of a host.
fn runs(host: &Host, count: f64) {
    host.within(move || async move {
        eventually("the service's sidecar knows", LIMIT, async || {
            metric(METRICS, "weft_calls_in_flight", "direction=\"inbound\"").await == count
        })
        .await;
    });
}

/// Makes a call that its service never answers, and returns how it ends.
async fn endless(port: u16, service: &'static str) -> Code {
    let channel = channel(port);
    let headers = [("x-weft-service", service), ("x-do", "sleep:6000000")];
    probe(&channel, "Say", &headers).await.expect_err("it is not answered").code()
}

/// With a bare client: tonic's would end the call by itself at its deadline.
async fn call(wire: &mut Wire, service: &str, deadline: &str) -> Code {
    let headers = [("x-weft-service", service), ("grpc-timeout", deadline)];
    timeout(LIMIT, wire.call("Say", &headers)).await.expect("it ends in time").code()
}
