//! An attacker's connection: it writes HTTP/2 frames as it likes.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_wire::{Headers, Name, hpack::Encoder};

/// RFC 9113, section 7.
const ENHANCE_YOUR_CALM: u32 = 0xb;

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}
const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

/// An HTTP/2 frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The connection of an attacker.
pub(crate) struct Attacker {
    pub(crate) stream: TcpStream,
    pub(crate) streams: Streams,
}

/// The numbers of a client's streams.
pub(crate) struct Streams {
    next: u32,
}

impl Streams {
    /// The number of a new stream.
    pub(crate) fn open(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }
}

impl Attacker {
    pub(crate) async fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        // Acknowledges the peer's settings in advance, so that a missing acknowledgement does not end the connection.
        let settings = [frame(kind::SETTINGS, 0, 0, &[]), frame(kind::SETTINGS, ACK, 0, &[])].concat();
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
        stream.write_all(&hello).await.expect("the bytes are sent");
        Self { stream, streams: Streams { next: 1 } }
    }

    /// With an open call on stream 1.
    pub(crate) async fn with_call(port: u16) -> Self {
        let mut attacker = Self::connect(port).await;
        let call = frame(kind::HEADERS, END_HEADERS, attacker.streams.open(), &head(&[]));
        attacker.stream.write_all(&call).await.expect("the bytes are sent");
        attacker
    }

    /// Writes what `next` returns, again and again, until the connection ends. If the peer only slows it down, this
    /// does not return: run it in a task that is aborted.
    pub(crate) async fn flood(mut self, mut next: impl FnMut(&mut Streams) -> Vec<u8>) {
        let (mut read, mut write) = self.stream.split();
        let reading = async {
            let mut sink = vec![0; 65_536];
            // The last bytes tell how the connection ended.
            let mut tail = Vec::new();
            while let Ok(count @ 1..) = read.read(&mut sink).await {
                tail.extend_from_slice(&sink[..count]);
                let keep = tail.len().saturating_sub(4096);
                tail.drain(..keep);
            }
            tail
        };
        let writing = async {
            while write.write_all(&next(&mut self.streams)).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            tail = reading => assert_calm(&tail),
            () = writing => {}
        }
    }
}

/// The bytes of `count` frames, to be written at once.
pub(crate) fn many(count: usize, make: impl FnMut() -> Vec<u8>) -> Vec<u8> {
    std::iter::repeat_with(make).take(count).flatten().collect()
}

/// Checks that the last GOAWAY, if there is one, has the code ENHANCE_YOUR_CALM. There may be none: closing a
/// connection with unread bytes resets it, and a reset discards a GOAWAY under way.
fn assert_calm(tail: &[u8]) {
    let goaway = tail.windows(9).rposition(|head| head[3] == kind::GOAWAY && head[5..9] == [0; 4]);
    if let Some(code) = goaway.and_then(|at| tail.get(at + 13..at + 17)) {
        assert_eq!(u32::from_be_bytes(code.try_into().expect("four bytes")), ENHANCE_YOUR_CALM);
    }
}

/// The header block of a call of `Say`.
pub(crate) fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut headers = Headers::new();
    headers.append(Name::METHOD, b"POST");
    headers.append(Name::SCHEME, b"http");
    headers.append(Name::PATH, b"/probe.v1.Probe/Say");
    headers.append(Name::AUTHORITY, b"probe");
    headers.append_bytes(b"content-type", b"application/grpc");
    headers.append_bytes(b"te", b"trailers");
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    let mut block = Vec::new();
    // A new encoder without a table each time, so that a block means the same at any place.
    Encoder::new(0).encode(&headers, &mut block);
    // Removes the change of the table's size to 0: some attacks use the table.
    assert_eq!(block.remove(0), 0x20);
    block
}
