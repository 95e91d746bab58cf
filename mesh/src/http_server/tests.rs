use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, oneshot},
};

use super::*;

/// Longer than any machine takes.
const GUARD: Duration = Duration::from_secs(60);

const LIMITS: PortLimits =
    PortLimits { connections: 2, streams: 8, header_bytes: 16 * 1024, timeout: GUARD, idle: GUARD };

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    panics: AtomicUsize,
    changed: Notify,
}

impl Observer for &'static Counts {
    fn has_connections(&self, count: usize) {
        self.connections.store(count, Relaxed);
        self.changed.notify_one();
    }

    fn has_panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
        self.changed.notify_one();
    }
}

impl Counts {
    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                self.changed.notified().await;
            }
        };
        timeout(GUARD, wait).await.expect("it is so at some time");
    }
}

struct Server {
    address: SocketAddr,
    counts: &'static Counts,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn start(app: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counts: &'static Counts = Box::leak(Box::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, "the test's port", LIMITS, app, counts, async { drop(stopped.await) }));
    Server { address, counts, stop, task }
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Everything until the server closes the connection; a reset counts as that.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(GUARD, stream.read_to_end(&mut bytes)).await.expect("the server closes it");
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_full_port_closes_the_oldest_connection_and_answers_a_new_one() {
    let whose = async |Extension(ends): Extension<Ends>| format!("{} to {}", ends.peer, ends.local);
    let server = start(Router::new().route("/", get(whose))).await;
    let mut silent = Vec::new();
    for count in 1..=LIMITS.connections {
        silent.push(TcpStream::connect(server.address).await.unwrap());
        server.counts.until(|counts| counts.connections.load(Relaxed) == count).await;
    }
    let mut new = TcpStream::connect(server.address).await.unwrap();
    let own = new.local_addr().unwrap();
    ask(&mut new, "/").await;
    let answer = rest(&mut new).await;
    assert!(answer.ends_with(&format!("{own} to {}", server.address)), "{answer}");
    assert_eq!(rest(&mut silent[0]).await, "", "the oldest made room");
    let mut byte = [0];
    let mut second = pin!(silent[1].read(&mut byte));
    assert!(now_or_never(&mut second).await.is_none(), "the other one stays");
    server.counts.until(|counts| counts.connections.load(Relaxed) == 1).await;
}

/// What a future returns if it is ready.
async fn now_or_never<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test]
async fn a_stop_lets_a_running_request_end_and_closes_what_is_silent() {
    let (begun, go_on) = <(Arc<Notify>, Arc<Notify>)>::default();
    let slow = {
        let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        get(async move || {
            begun.notify_one();
            go_on.notified().await;
            "done"
        })
    };
    let server = start(Router::new().route("/", slow)).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut running = TcpStream::connect(server.address).await.unwrap();
    ask(&mut running, "/").await;
    timeout(GUARD, begun.notified()).await.unwrap();
    server.stop.send(()).unwrap();
    assert_eq!(rest(&mut silent).await, "");
    go_on.notify_one();
    assert!(rest(&mut running).await.ends_with("done"));
    timeout(GUARD, server.task).await.expect("it waits for nothing else").unwrap();
}

#[tokio::test]
async fn a_panic_is_counted_and_the_port_goes_on() {
    let broken = async || -> &'static str { panic!("the test's panic") };
    let server = start(Router::new().route("/broken", get(broken)).route("/", get(async || "fine"))).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    ask(&mut stream, "/broken").await;
    assert_eq!(rest(&mut stream).await, "");
    server.counts.until(|counts| counts.panics.load(Relaxed) == 1).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    ask(&mut stream, "/").await;
    assert!(rest(&mut stream).await.ends_with("fine"));
}
