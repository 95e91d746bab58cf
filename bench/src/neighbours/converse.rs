//! The child with a hundred streams on one connection: on all but one, messages are echoed. The last one is not read.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::Request;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use weft_mesh::limits;

use crate::{
    bed::AUTHORITY,
    contract, http2,
    load::{GRACE, Latency},
    process::Role,
};

/// Streams on the connection.
pub(crate) const STREAMS: usize = 100;

/// gRPC's frame around 128 bytes.
const MESSAGE_BYTES: usize = 5 + 128;

#[derive(Args)]
pub(crate) struct ConverseArgs {
    #[arg(long)]
    to: SocketAddr,
    /// How long each of the two measurements takes.
    #[arg(long)]
    millis: u64,
}

/// Latencies of messages and their echoes on all streams but one: without the unread one, and beside it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Conversations {
    pub(crate) without: Latency,
    pub(crate) beside: Latency,
}

/// Runs the child.
pub(crate) async fn start(to: SocketAddr, time: Duration) -> Result<Conversations> {
    let args = ["converse".to_owned(), format!("--to={to}"), format!("--millis={}", time.as_millis())];
    let (mut role, _) = Role::start(args, GRACE).await?;
    let line = role.line(4 * time + 2 * GRACE).await?;
    role.process.kill().await;
    serde_json::from_str(&line).with_context(|| format!("unexpected: {line}"))
}

/// The `converse` child.
pub(crate) async fn run(args: ConverseArgs) -> Result<()> {
    println!("ready {}", args.to);
    let time = Duration::from_millis(args.millis);
    match converse(args.to, time).await {
        Ok(found) => println!("{}", serde_json::to_string(&found)?),
        Err(error) => println!("{error:#}"),
    }
    // The parent kills this process.
    std::future::pending().await
}

async fn converse(to: SocketAddr, time: Duration) -> Result<Conversations> {
    let requests = http2::connect(http2::dial(to).await?, || ()).await?;
    let mut streams = Vec::new();
    for _ in 1..STREAMS {
        streams.push(Stream::open(&requests, contract::CHAT).await?);
    }
    // The first round is not counted.
    on_all(&mut streams, time / 2).await?;
    let without = on_all(&mut streams, time).await?;
    let mut unread = Stream::open(&requests, contract::POUR).await?;
    until_full(&mut unread.answer).await?;
    let beside = on_all(&mut streams, time).await?;
    ensure!(unread.answer.flow_control().used_capacity() == WINDOW, "the stream was read, or has ended");
    Ok(Conversations { without, beside })
}

const WINDOW: usize = limits::STREAM_WINDOW_BYTES as usize;

/// Waits until the stream has sent as much as it may before it is read.
async fn until_full(answer: &mut RecvStream) -> Result<()> {
    let full = async {
        while answer.flow_control().used_capacity() < WINDOW {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(GRACE, full).await.context("the stream that is not read does not fill its window")
}

struct Stream {
    requests: SendStream<Bytes>,
    answer: RecvStream,
}

impl Stream {
    async fn open(requests: &SendRequest<Bytes>, path: &str) -> Result<Self> {
        let request = Request::post(format!("http://{AUTHORITY}{path}"));
        let request = request.header("te", "trailers").header("content-type", "application/grpc").body(())?;
        let (answer, requests) = requests.clone().ready().await?.send_request(request, false)?;
        let answer = answer.await?;
        ensure!(answer.status() == 200, "the answer is {}", answer.status());
        Ok(Self { requests, answer: answer.into_body() })
    }

    /// Sends a message and waits for its echo.
    async fn echo(&mut self, message: &Bytes) -> Result<()> {
        http2::send(&mut self.requests, message.clone(), false).await?;
        let mut received = 0;
        while received < message.len() {
            let Some(data) = self.answer.data().await else { bail!("a stream has ended") };
            let data = data?;
            self.answer.flow_control().release_capacity(data.len())?;
            ensure!(message[received..].starts_with(&data), "an echo differs from its message");
            received += data.len();
        }
        Ok(())
    }
}

/// Sends messages on all streams at once, for `time`.
async fn on_all(streams: &mut Vec<Stream>, time: Duration) -> Result<Latency> {
    let end = Instant::now() + time;
    let mut running = JoinSet::new();
    for mut stream in streams.drain(..) {
        running.spawn(async move {
            let message = Bytes::from(vec![b'x'; MESSAGE_BYTES]);
            let mut took = Vec::new();
            while Instant::now() < end {
                let begin = Instant::now();
                stream.echo(&message).await?;
                took.push(begin.elapsed());
            }
            anyhow::Ok((stream, took))
        });
    }
    let mut all = Vec::new();
    for ended in timeout(time + GRACE, running.join_all()).await.context("streams hang")? {
        let (stream, took) = ended?;
        streams.push(stream);
        all.extend(took);
    }
    Latency::of(&all)
}
