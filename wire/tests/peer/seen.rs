//! What a connection shows to the outside: to its user and on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::blocks::List;
use super::frames::*;

/// A call, as the user of the connection saw it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// The received header sections, each sorted by name: a request's, or a response's interim and final ones.
    pub heads: Vec<List>,
    pub body: Vec<u8>,
    pub trailers: Option<List>,
    /// The peer's half has ended.
    pub is_ended: bool,
    /// The code with which it was reset.
    pub reset: Option<u32>,
}

/// Everything that was seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub calls: BTreeMap<u32, Call>,
    /// RST_STREAM frames sent; the first of each stream.
    pub resets: BTreeMap<u32, u32>,
    /// The code of the GOAWAY that was sent.
    pub goaway: Option<u32>,
    pub settings_acks: usize,
    pub ping_acks: usize,
    /// The number of field blocks sent, by stream.
    pub heads_sent: BTreeMap<u32, usize>,
    pub ends_sent: BTreeSet<u32>,
    /// Bytes of DATA sent on all streams.
    pub data_sent: usize,
}

/// Reads what a connection writes.
#[derive(Default)]
pub struct Tap {
    bytes: Vec<u8>,
    /// The client's preface is still to come.
    has_preface: bool,
}

impl Tap {
    pub fn new(has_preface: bool) -> Self {
        Self { bytes: Vec::new(), has_preface }
    }

    /// Takes more output, and returns the frames that are complete.
    pub fn take(&mut self, output: &[u8]) -> Vec<Frame> {
        self.bytes.extend_from_slice(output);
        let mut rest = &self.bytes[..];
        if self.has_preface && rest.starts_with(PREFACE) {
            rest = &rest[PREFACE.len()..];
            self.has_preface = false;
        }
        let mut frames = Vec::new();
        while !self.has_preface
            && let Some(frame) = Frame::read(&mut rest)
        {
            frames.push(frame);
        }
        let left = rest.len();
        self.bytes.drain(..self.bytes.len() - left);
        frames
    }
}

impl Seen {
    pub fn call(&mut self, stream: u32) -> &mut Call {
        self.calls.entry(stream).or_default()
    }

    /// The call that a frame belongs to.
    pub fn call_of(&self, frame: &Frame) -> Call {
        self.calls.get(&frame.stream).cloned().unwrap_or_default()
    }

    /// Counts a frame that the connection sent.
    pub fn sent(&mut self, frame: &Frame) {
        match frame.kind {
            DATA => self.data_sent += frame.payload.len(),
            HEADERS => *self.heads_sent.entry(frame.stream).or_default() += 1,
            RST_STREAM => drop(self.resets.entry(frame.stream).or_insert(frame.number(0))),
            SETTINGS if frame.has(ACK) => self.settings_acks += 1,
            PING if frame.has(ACK) => self.ping_acks += 1,
            GOAWAY => self.goaway = Some(frame.number(4)),
            _ => {}
        }
        if matches!(frame.kind, DATA | HEADERS) && frame.has(END_STREAM) {
            self.ends_sent.insert(frame.stream);
        }
    }
}

impl Call {
    /// Whether its response has a status that never has content.
    pub fn has_no_content(&self) -> bool {
        let status = |list: &List| list.iter().any(|(n, v)| n == b":status" && matches!(&v[..], b"204" | b"304"));
        self.heads.iter().any(status)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |list: &List| -> Vec<String> {
            list.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii())).collect()
        };
        let heads: Vec<_> = self.heads.iter().map(text).collect();
        write!(f, "{heads:?} {} bytes", self.body.len())?;
        if let Some(trailers) = &self.trailers {
            write!(f, " trailers {:?}", text(trailers))?;
        }
        f.write_str(if self.is_ended { " ended" } else { "" })?;
        self.reset.map_or(Ok(()), |code| write!(f, " reset {code}"))
    }
}

/// Sorts a list by name, keeping the order of values. If there is no authority, the scheme is left out, because h2 does
/// not keep it.
pub fn sorted(list: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> List {
    let mut list: List = list.collect();
    if !list.iter().any(|(name, _)| name == b":authority") {
        list.retain(|(name, _)| name != b":scheme");
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}
