//! The bodies of requests to the webhook: how many are read at once and for how long, and how much may be in one.
//!
//! Every pod can reach the port. So a body takes a turn before any of it is read, and each host has few turns: whoever
//! sends slowly from one host holds up only requests of that host. The API server waits for 5 s in all, and sends a
//! body in one go.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::{Body, Bytes, to_bytes};
use http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The API server's limit for an object is 3 MiB. A review of a new pod has it once, with little around it.
const BYTES: usize = 4 * 1024 * 1024;
/// How many values a review may have. A value takes up to 700 bytes of memory, and as few as 4 in the body.
const VALUES: usize = 100_000;
/// How many bodies are held at once, and how many of one host.
const AT_ONCE: usize = 16;
const OF_HOST: usize = 2;
/// How many reviews are answered at once, each on a thread for slow work.
pub(crate) const WORK: usize = 2;
/// How long a request waits for its turn, and how long its body may take.
const WAIT: Duration = Duration::from_secs(4);
const TIME: Duration = Duration::from_secs(1);

/// Why a request gets no answer.
pub(super) type Refusal = (StatusCode, &'static str);

/// See the module.
pub(super) struct Bodies {
    all: Arc<Semaphore>,
    work: Arc<Semaphore>,
    /// Those that have a turn or wait for one, and maybe others.
    hosts: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// A body, and its turn.
pub(super) struct Turn {
    pub(super) body: Bytes,
    _of: [OwnedSemaphorePermit; 3],
}

impl Bodies {
    pub(super) fn new() -> Self {
        let turns = |count| Arc::new(Semaphore::new(count));
        Self { all: turns(AT_ONCE), work: turns(WORK), hosts: Mutex::default() }
    }

    /// Reads a body from this host. Hold the turn until the answer is built.
    pub(super) async fn read(&self, from: IpAddr, body: Body) -> Result<Turn, Refusal> {
        let waiting = async { (own(self.host(from)).await, own(Arc::clone(&self.all)).await) };
        let (host, all) = timeout(WAIT, waiting)
            .await
            .map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "too many requests are being answered"))?;
        let body = timeout(TIME, to_bytes(body, BYTES))
            .await
            .map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?
            .map_err(|_| (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or broke off"))?;
        // Those before it are at work, which is short.
        Ok(Turn { body, _of: [host, all, own(Arc::clone(&self.work)).await] })
    }

    fn host(&self, from: IpAddr) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, turns| Arc::strong_count(turns) > 1);
        Arc::clone(hosts.entry(from).or_insert_with(|| Arc::new(Semaphore::new(OF_HOST))))
    }
}

async fn own(turns: Arc<Semaphore>) -> OwnedSemaphorePermit {
    turns.acquire_owned().await.expect("nobody closes it")
}

/// Whether a JSON text has more values than a pod has.
pub(super) fn has_too_many_values(text: &[u8]) -> bool {
    let (mut count, mut is_string, mut is_escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            // What follows is a value, or else no JSON.
            b'{' | b'[' | b',' if !is_string => count += 1,
            _ => {}
        }
    }
    count > VALUES
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::stream;
    use tokio::{task::yield_now, time::Instant};

    use super::*;

    const SLOW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn never() -> Body {
        Body::from_stream(stream::once(pending::<Result<Bytes, std::io::Error>>()))
    }

    /// Otherwise any pod can keep all others from being made.
    #[tokio::test(start_paused = true)]
    async fn slow_bodies_hold_up_only_their_own_host() {
        let bodies = Arc::new(Bodies::new());
        for _ in 0..1_000 {
            let bodies = Arc::clone(&bodies);
            tokio::spawn(async move { bodies.read(SLOW, never()).await.map(drop) });
        }
        yield_now().await;
        assert_eq!(bodies.all.available_permits(), AT_ONCE - OF_HOST);
        let before = Instant::now();
        let turn = bodies.read(OTHER, Body::from("{}")).await.map_err(|refusal| refusal.1).unwrap();
        assert_eq!((&*turn.body, before.elapsed()), (&b"{}"[..], Duration::ZERO));
        let ended = bodies.read(SLOW, never()).await.err().unwrap();
        assert_eq!(ended.0, StatusCode::SERVICE_UNAVAILABLE, "a thousand wait before it");
        drop(turn);
        tokio::time::sleep(WAIT + TIME).await;
        assert_eq!(bodies.all.available_permits(), AT_ONCE);
        assert_eq!(bodies.read(SLOW, never()).await.err().unwrap().0, StatusCode::REQUEST_TIMEOUT);
        drop(bodies.host(OTHER));
        assert_eq!(bodies.hosts.lock().unwrap().len(), 1, "hosts that have gone are forgotten");
    }

    #[tokio::test]
    async fn a_body_is_bounded() {
        let bodies = Bodies::new();
        let all = bodies.read(SLOW, Body::from(vec![b' '; BYTES])).await.is_ok();
        let more = bodies.read(SLOW, Body::from(vec![b' '; BYTES + 1])).await.err().unwrap();
        assert_eq!((all, more.0), (true, StatusCode::PAYLOAD_TOO_LARGE));
    }

    #[test]
    fn the_values_of_a_text_are_counted_without_reading_it() {
        let list = |count: usize| format!("[{}]", vec![r#"{"a":",[{\"[,"}"#; count].join(","));
        assert!(!has_too_many_values(list(VALUES / 2).as_bytes()));
        assert!(has_too_many_values(list(VALUES / 2 + 1).as_bytes()));
    }
}
