//! Makes calls in a loop, and reports their outcome.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::uri::PathAndQuery;
use serde_json::json;
use tokio::{task::LocalSet, time::Instant};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{Raw, Words};

const MESSAGE_BYTES: usize = 64 << 20;

/// The options of a load.
struct Plan {
    kind: String,
    body: Bytes,
    messages: usize,
    deadline: Option<Duration>,
    /// Each n-th call is dropped before it has ended; 0 for none.
    cancel_every: usize,
    what: String,
    expected: Option<Code>,
    end: Instant,
}

/// The outcome of one worker's calls.
#[derive(Default)]
struct Seen {
    /// When each call ended, and how long it took.
    answers: Vec<(Instant, Duration)>,
    failures: BTreeMap<String, u64>,
    example: String,
}

pub(crate) async fn run(words: &Words) -> anyhow::Result<()> {
    let plan = Rc::new(Plan {
        kind: words.text("kind").to_owned(),
        body: vec![b'x'; words.number("bytes", 128)?].into(),
        messages: words.number("messages", 10)?,
        deadline: words.millis("deadline_ms")?,
        cancel_every: words.number("cancel_every", 0)?,
        what: words.text("do").to_owned(),
        expected: words.text("expect").parse::<i32>().ok().map(Code::from),
        end: Instant::now() + Duration::from_secs(words.number("seconds", 2)? as u64),
    });
    let (workers, mut running) = (LocalSet::new(), Vec::new());
    for _ in 0..words.number("connections", 1)? {
        let channel = Endpoint::from_shared(format!("http://{}", words.text("target")))?.connect_lazy();
        for _ in 0..words.number("each", 1)? {
            running.push(workers.spawn_local(work(Rc::clone(&plan), channel.clone())));
        }
    }
    workers.await;
    let mut seen = Vec::new();
    for worker in running {
        seen.push(worker.await?);
    }
    report(seen);
    Ok(())
}

async fn work(plan: Rc<Plan>, channel: Channel) -> Seen {
    let mut seen = Seen::default();
    for number in 1.. {
        let began = Instant::now();
        if began >= plan.end {
            break;
        }
        let cancels = plan.cancel_every > 0 && number % plan.cancel_every == 0;
        let ended = if cancels {
            // At all points of a call's life: from its start to after its end.
            let wait = Duration::from_micros(100 * (number / plan.cancel_every % 20) as u64);
            tokio::time::timeout(wait, call(&plan, &channel)).await.unwrap_or(Ok(()))
        } else {
            call(&plan, &channel).await
        };
        seen.answers.push((Instant::now(), began.elapsed()));
        if let Err(status) = ended
            && Some(status.code()) != plan.expected
        {
            *seen.failures.entry(format!("{:?}", status.code())).or_default() += 1;
            seen.example = status.message().to_owned();
        }
    }
    seen
}

async fn call(plan: &Plan, channel: &Channel) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    grpc.ready().await.map_err(|e| Status::unavailable(format!("{e:?}")))?;
    let message = plan.body.clone();
    let codec = Raw;
    let many = stream::iter(vec![message.clone(); plan.messages]);
    let path = |method| PathAndQuery::from_maybe_shared(format!("/honest.v1.Echo/{method}")).expect("a path");
    match plan.kind.as_str() {
        "client" => {
            let answer = grpc.client_streaming(plan.request(many), path("ClientStream"), codec).await?;
            plan.check([answer.into_inner()], 1)
        }
        "server" => {
            let answer = grpc.server_streaming(plan.request(message), path("ServerStream"), codec).await?;
            let heard: Vec<_> = answer.into_inner().collect().await;
            plan.check(heard.into_iter().collect::<Result<Vec<_>, _>>()?, plan.messages)
        }
        "bidi" => {
            let answer = grpc.streaming(plan.request(many), path("Bidi"), codec).await?;
            let heard: Vec<_> = answer.into_inner().collect().await;
            plan.check(heard.into_iter().collect::<Result<Vec<_>, _>>()?, plan.messages)
        }
        _ => {
            let answer = grpc.unary(plan.request(message), path("Unary"), codec).await?;
            plan.check([answer.into_inner()], 1)
        }
    }
}

impl Plan {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        request.metadata_mut().insert("x-count", MetadataValue::from(self.messages));
        if !self.what.is_empty() {
            request.metadata_mut().insert("x-do", self.what.parse().expect("an ASCII value"));
        }
        request
    }

    fn check(&self, heard: impl IntoIterator<Item = Bytes>, count: usize) -> Result<(), Status> {
        let heard: Vec<_> = heard.into_iter().collect();
        if heard.len() == count && heard.iter().all(|message| *message == self.body) {
            return Ok(());
        }
        Err(Status::data_loss(format!("{} messages came back, or they were changed", heard.len())))
    }
}

/// Prints the outcome of all calls as one line of JSON.
fn report(seen: Vec<Seen>) {
    let (mut answers, mut failures, mut example) = (Vec::new(), BTreeMap::<String, u64>::new(), String::new());
    for worker in seen {
        answers.extend(worker.answers);
        for (code, count) in worker.failures {
            *failures.entry(code).or_default() += count;
            example.clone_from(&worker.example);
        }
    }
    answers.sort_unstable();
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let gap = answers.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap_or_default();
    let mut took: Vec<Duration> = answers.iter().map(|answer| answer.1).collect();
    took.sort_unstable();
    let max = took.last().copied().unwrap_or_default();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    let told = json!({
        "calls": answers.len(), "failures": failures, "example": example,
        "gap_ms": millis(gap), "p50_ms": millis(median), "max_ms": millis(max),
    });
    println!("{told}");
}
