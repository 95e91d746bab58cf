//! How many connections there are, and what they are used for.

use std::{collections::BTreeSet, time::Duration};

use tokio::task::JoinSet;
use tonic::{Code, Response, Status};
use weft_mesh::limits::CONNECTIONS_PER_ENDPOINT;
use weft_tests::{Bed, Text, eventually, probe, probe_service};

const LIMIT: Duration = Duration::from_secs(60);

const STREAMS: usize = 2;

fn connection(answer: &Response<Text>) -> u64 {
    let number = answer.metadata().get("x-connection").expect("every answer has it");
    number.to_str().expect("digits").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_that_a_connection_does_not_take_get_another_until_there_are_as_many_as_may_be() {
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

    // One more than may be is told so at once: it does not wait in a queue that nobody sees.
    let answers = call(most + 1).join_all().await;
    let refused: Vec<&Status> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].code(), Code::Unavailable, "{:?}", refused[0]);
    eventually("there is room again", LIMIT, async || probe(&channel, "Say", &[]).await.is_ok()).await;

    // One after the other they need but one.
    let mut numbers = BTreeSet::new();
    for _ in 0..20 {
        numbers.insert(connection(&probe(&channel, "Say", &[]).await.expect("an answer")));
    }
    assert_eq!(numbers.len(), 1, "{numbers:?}");
}
