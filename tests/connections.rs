//! How many connections the sidecars keep, and which calls use them.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tonic::{Code, Response, Status};
use weft_mesh::limits::CONNECTIONS_PER_ENDPOINT;
use weft_tests::{Bed, Text, Wire, eventually, metric, probe, probe_service, resident_bytes, result, skip};

const LIMIT: Duration = Duration::from_secs(60);

const STREAMS: usize = 2;

fn connection(answer: &Response<Text>) -> u64 {
    let number = answer.metadata().get("x-connection").expect("every answer has it");
    number.to_str().expect("digits").parse().expect("a number")
}

/// The number of calls that run in the probe's sidecar.
async fn running(bed: &Bed) -> usize {
    let state = bed.json(bed.ports("probe-1").admin, "/state").await;
    state["calls"]["oldest"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_wait_when_all_connections_are_full() {
    let bed = Bed::start(&format!("{}    env: {{ MAX_STREAMS: {STREAMS} }}\n", probe_service(1))).await;
    let channel = bed.channel();
    probe(&channel, "Say", &[]).await.expect("an answer");

    let most = STREAMS * CONNECTIONS_PER_ENDPOINT;
    let mut calls = JoinSet::new();
    let mut call = |count: usize| -> JoinSet<Result<Response<Text>, Status>> {
        for _ in 0..count {
            let channel = channel.clone();
            calls.spawn(async move { probe(&channel, "Say", &[("x-do", "sleep:3000")]).await });
        }
        std::mem::take(&mut calls)
    };
    let answers = call(most).join_all().await;
    let numbers: BTreeSet<u64> = answers.iter().map(|answer| connection(answer.as_ref().expect("an answer"))).collect();
    assert_eq!(numbers.len(), CONNECTIONS_PER_ENDPOINT, "{numbers:?}");

    // More calls than fit wait for those before them.
    for answer in call(3 * most).join_all().await {
        let answer = answer.expect("an answer");
        assert!(numbers.contains(&connection(&answer)), "no new connection is made");
    }
    // A call that would wait beyond its deadline ends with it, and holds up no other.
    let blocking = call(most);
    eventually("all connections are full", LIMIT, async || running(&bed).await == most).await;
    // A bare client: tonic's would end the call by itself.
    let status = Wire::connect(bed.outbound()).await.call("Say", &[("grpc-timeout", "200m")]).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    drop(blocking);
    eventually("there is room again", LIMIT, async || probe(&channel, "Say", &[]).await.is_ok()).await;

    // Calls one after the other need only one connection.
    let mut numbers = BTreeSet::new();
    for _ in 0..20 {
        numbers.insert(connection(&probe(&channel, "Say", &[]).await.expect("an answer")));
    }
    assert_eq!(numbers.len(), 1, "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_replica_has_a_connection_before_calls_need_it() {
    let bed = Bed::start(&probe_service(3)).await;
    let opened = async || metric(bed.ports("keyboard").metrics, "weft_upstream_connections_opened_total", "").await;
    assert_eq!(opened().await, 0.0, "a service that nobody calls costs no connection");
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    eventually("there is a connection to each", LIMIT, async || opened().await == 3.0).await;
    for _ in 0..30 {
        probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    }
    assert_eq!(opened().await, 3.0);

    // A replica that replaces another has a connection before it is called.
    let output = bed.weft(&["restart", "probe"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("there is one to each of the new ones", LIMIT, async || opened().await >= 6.0).await;
    let open = async || metric(bed.ports("keyboard").metrics, "weft_connections_open", "made").await;
    eventually("those to the old ones are gone", LIMIT, async || open().await == 3.0).await;
}

fn limit_files(current: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("below the hard limit");
}

/// The number of idle clients, and the memory that each may take.
const IDLE: usize = 10_000;
const IDLE_BYTES: usize = 25 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idle_clients_take_little_memory() {
    // The usual limit of a shell. A sidecar raises it by itself.
    let limit = getrlimit(Resource::Nofile);
    limit_files(Some(1024));
    let bed = Bed::start(&probe_service(1)).await;
    limit_files(limit.maximum);
    if limit.maximum.is_some_and(|maximum| maximum < IDLE as u64 + 1000) {
        return skip(&format!("{IDLE} connections are more than the open files that are allowed here"));
    }
    let channel = bed.channel();
    probe(&channel, "Say", &[]).await.expect("an answer");
    let pid = bed.pid("keyboard·sidecar");
    let before = resident_bytes(pid);
    let mut clients = Vec::with_capacity(IDLE);
    let mut buffer = [0; 256];
    // One after the other, as each has to answer the sidecar within a time limit.
    for _ in 0..IDLE {
        let mut client = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("there is room");
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("the bytes are sent");
        // The sidecar's SETTINGS, and its acknowledgement of the client's. Then the client acknowledges, too.
        let mut heard = Vec::new();
        while !heard.ends_with(b"\0\0\0\x04\x01\0\0\0\0") {
            let count = client.read(&mut buffer).await.expect("it is open");
            assert!(count > 0, "it was closed");
            heard.extend_from_slice(&buffer[..count]);
        }
        client.write_all(b"\0\0\0\x04\x01\0\0\0\0").await.expect("it is open");
        clients.push(client);
    }
    probe(&channel, "Say", &[]).await.expect("an answer");
    let open = metric(bed.ports("keyboard").metrics, "weft_connections_open", "accepted").await;
    assert!(open >= IDLE as f64, "{open} are open");
    let each = resident_bytes(pid).saturating_sub(before) / IDLE;
    result(&format!("{IDLE} idle connections of HTTP/2: {each} bytes each in the sidecar"));
    assert!(each <= IDLE_BYTES, "{each} bytes each");
}
