//! A client of HTTP/1.1 that sees every byte.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longer than the longest time that a sidecar waits for a client.
const LIMIT: Duration = Duration::from_secs(120);

/// A connection whose bytes a test writes and reads itself.
#[derive(Debug)]
pub struct Client {
    /// The connection.
    pub stream: TcpStream,
    seen: Vec<u8>,
}

impl Client {
    /// To a loopback port.
    ///
    /// # Panics
    /// Nothing listens there.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, seen: Vec::new() }
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// The connection is closed.
    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.expect("the bytes are sent");
    }

    /// Reads up to and including `end`.
    ///
    /// # Panics
    /// `end` does not come.
    pub async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.seen.windows(end.len()).position(|bytes| bytes == end.as_bytes()) {
                let rest = self.seen.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.seen, rest)).expect("text");
            }
            let count = timeout(LIMIT, self.stream.read_buf(&mut self.seen)).await;
            let count = count.unwrap_or_else(|_| panic!("no `{end}` in {}", self.seen.escape_ascii()));
            assert!(count.expect("the connection is whole") > 0, "no `{end}` in {}", self.seen.escape_ascii());
        }
    }

    /// An answer with a `content-length`: its head and its body.
    ///
    /// # Panics
    /// It does not come.
    pub async fn answer(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap_or_else(|| panic!("no length in {head}")).parse().expect("a number");
        while self.seen.len() < length {
            let count = timeout(LIMIT, self.stream.read_buf(&mut self.seen)).await.expect("in time");
            assert!(count.expect("the connection is whole") > 0, "the answer is cut off");
        }
        let rest = self.seen.split_off(length);
        (head, String::from_utf8(std::mem::replace(&mut self.seen, rest)).expect("text"))
    }

    /// Waits until the other side closes the connection, and checks that nothing comes before.
    ///
    /// # Panics
    /// Something comes, or it stays open.
    pub async fn closes(mut self) {
        let count = timeout(LIMIT, self.stream.read_buf(&mut self.seen)).await.expect("it is closed in time");
        assert!(matches!(count, Ok(0) | Err(_)), "more came: {}", self.seen.escape_ascii());
    }
}
