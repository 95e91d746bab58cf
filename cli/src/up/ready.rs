//! Asks processes whether they are ready.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use weft_mesh::names::shown_up_to;

/// The pause between two questions.
const INTERVAL: Duration = Duration::from_millis(15);
/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const ANSWER_BYTES: u64 = 4_096;
/// The most characters of a reason that are shown.
const REASON_CHARS: usize = 400;

/// Waits until something listens there, but not longer than `limit`.
pub(crate) async fn listening(address: SocketAddr, limit: Duration) {
    let listens = async {
        while TcpStream::connect(address).await.is_err() {
            sleep(INTERVAL).await;
        }
    };
    // After the limit the caller goes on, and sees itself what is wrong.
    let _ = timeout(limit, listens).await;
}

/// Waits until the sidecar there says that no call runs in its service any more, or until the sidecar is gone; for at
/// most `limit`.
pub(crate) async fn drained(address: impl Fn() -> SocketAddr, limit: Duration) {
    let drained = async {
        while matches!(timeout(ANSWER_LIMIT, get(address(), "/drainz")).await, Ok(Ok((503, _)))) {
            sleep(INTERVAL).await;
        }
    };
    let _ = timeout(limit, drained).await;
}

/// Why something is not ready.
#[derive(Debug, PartialEq, Eq)]
enum Unready {
    /// The reason that it gives itself.
    Says(String),
    NoAnswer(String),
}

impl Unready {
    fn into_reason(self) -> String {
        match self {
            Self::Says(reason) | Self::NoAnswer(reason) => reason,
        }
    }
}

/// Asks `/readyz` there: `Ok` when it is answered with 200.
async fn ask(address: SocketAddr) -> Result<(), Unready> {
    match timeout(ANSWER_LIMIT, get(address, "/readyz")).await {
        Ok(Ok((200, _))) => Ok(()),
        Ok(Ok((status, body))) => match body.trim() {
            "" => Err(Unready::Says(format!("it answers {status}"))),
            // Another process may have the port.
            reason => Err(Unready::Says(shown_up_to(reason, REASON_CHARS))),
        },
        Ok(Err(error)) => Err(Unready::NoAnswer(format!("{address}: {error}"))),
        Err(_) => Err(Unready::NoAnswer(format!("{address}: no answer within {ANSWER_LIMIT:?}"))),
    }
}

/// Waits until `/readyz` is answered with 200, for at most `limit`; the error is the last reason.
pub(crate) async fn wait(address: impl Fn() -> SocketAddr, limit: Duration) -> Result<(), String> {
    wait_and_tell(address, limit, |_| ()).await
}

/// Like [`wait`], and calls `tell` with each new reason meanwhile.
pub(crate) async fn wait_and_tell(
    address: impl Fn() -> SocketAddr,
    limit: Duration,
    mut tell: impl FnMut(&str),
) -> Result<(), String> {
    let until = Instant::now() + limit;
    let mut told = String::new();
    loop {
        let unready = match ask(address()).await {
            Ok(()) => return Ok(()),
            Err(unready) => unready,
        };
        // If there is no answer yet, there is nothing to tell: it is starting.
        if let Unready::Says(reason) = &unready
            && *reason != told
        {
            tell(reason);
            told.clone_from(reason);
        }
        if Instant::now() >= until {
            return Err(unready.into_reason());
        }
        sleep(INTERVAL).await;
    }
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other("not an HTTP answer"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_s_reason_is_passed_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let unready = "503 Service Unavailable\r\ncontent-length: 11\r\n\r\nno SVID\x1b[2J";
            for answer in [unready, unready, "200 OK\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1_024];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
            }
        });
        let mut told = Vec::new();
        let tell = |reason: &str| told.push(reason.to_owned());
        assert_eq!(wait_and_tell(|| address, Duration::from_secs(60), tell).await, Ok(()));
        assert_eq!(told, ["no SVID\\u{1b}[2J"]);
        server.await.unwrap();
        assert!(matches!(ask(address).await, Err(Unready::NoAnswer(_))));
    }
}
