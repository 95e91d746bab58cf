//! Calls that one replica does not answer are answered by another, if their contract says so: `docs/failures.md`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;
use tonic::{Code, transport::Channel};
use tonic_prost::ProstCodec;
use weft_tests::{Bed, Text, eventually, metric, root};

const LIMIT: Duration = Duration::from_secs(60);

/// Fewer than the hedges that a sidecar may make at once.
const CALLS: usize = 5;

/// Two replicas of a service whose calls are hedged.
async fn bed() -> Bed {
    let proto = root().join("tests/proto/probe/v1/hedge.proto").display().to_string();
    let run = "run: ${BIN}/weft-test-app\n    proto_path: ${PROTO_PATH}\n    replicas: 2\n";
    Bed::start(&format!("  hedged:\n    protos: [{proto}]\n    {run}")).await
}

/// Calls a method of the service, which does as `what` says.
async fn call(channel: &Channel, method: &str, what: &str) -> Result<tonic::Response<Text>, tonic::Status> {
    let mut request = tonic::Request::new(Text { text: "hello".into() });
    request.metadata_mut().insert("x-do", what.parse().expect("an ASCII value"));
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("the sidecar is there");
    let path = http::uri::PathAndQuery::try_from(format!("/probe.hedge.v1.Hedged/{method}")).expect("a path");
    client.unary(request, path, ProstCodec::<Text, Text>::default()).await
}

/// The value of a header of an answer of the service.
fn header(answer: &tonic::Response<Text>, name: &str) -> String {
    let value = answer.metadata().get(name).expect("every answer has it");
    value.to_str().expect("text").to_owned()
}

/// Waits until both replicas have answered over this channel, so that its sidecar is connected to both.
async fn both_answer(channel: &Channel) {
    let pids = RefCell::new(BTreeSet::new());
    eventually("both replicas answer", LIMIT, async || {
        if let Ok(answer) = call(channel, "Write", "").await {
            pids.borrow_mut().insert(header(&answer, "x-pid"));
        }
        pids.borrow().len() == 2
    })
    .await;
}

/// A call that hangs at the first replica that it comes to.
fn hangs_once(bed: &Bed, name: usize) -> String {
    format!("hang-once:{}", bed.dir().join(format!("hangs-{name}")).display())
}

#[tokio::test]
async fn a_call_that_one_replica_does_not_answer_is_answered_by_the_other() {
    let bed = bed().await;
    let channel = bed.channel();
    both_answer(&channel).await;
    let keyboard = bed.ports("keyboard");
    for name in 0..CALLS {
        let answer = call(&channel, "Read", &hangs_once(&bed, name)).await.expect("the other replica answers");
        assert_eq!(answer.get_ref().text, "hello");
    }
    assert_eq!(metric(keyboard.metrics, "weft_hedges_total", "Hedged/Read").await, CALLS as f64);
    assert_eq!(metric(keyboard.metrics, "weft_calls_total", "Hedged/Read").await, CALLS as f64, "each is one call");
    assert_eq!(metric(keyboard.metrics, "weft_retries_total", "Hedged/Read").await, 0.0);

    let broken: RefCell<BTreeMap<String, usize>> = RefCell::default();
    eventually("the replicas that hang are told that nobody waits for them", LIMIT, async || {
        if let Ok(answer) = call(&channel, "Write", "").await {
            let count = header(&answer, "x-broken").parse().expect("a number");
            broken.borrow_mut().insert(header(&answer, "x-pid"), count);
        }
        broken.borrow().values().sum::<usize>() == CALLS
    })
    .await;

    let state = bed.json(keyboard.admin, "/state").await;
    let methods = state["services"][0]["policy"]["contracts"][0]["methods"].as_array().expect("methods");
    let after =
        |name: &str| methods.iter().find(|method| method["name"] == name).expect("it")["hedge"]["after"].clone();
    assert_eq!([after("Read"), after("Alone"), after("Write")], ["0.050s".into(), Value::Null, Value::Null]);
}

#[tokio::test]
async fn without_the_option_such_a_call_ends_at_its_deadline() {
    let bed = bed().await;
    let channel = bed.channel();
    both_answer(&channel).await;
    for name in 0..CALLS {
        let status = call(&channel, "Alone", &hangs_once(&bed, name)).await.expect_err("nobody else is asked");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    assert_eq!(metric(bed.ports("keyboard").metrics, "weft_hedges_total", "").await, 0.0);
}
