//! Writes and reads frames, without any of the code under test.

use std::fmt;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY_FLAG: u8 = 0x20;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame. `length` is the length in its frame header, which a mutation may have made wrong.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    /// The reserved bit in front of the stream identifier.
    pub reserved: bool,
    pub length: usize,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: Vec<u8>) -> Self {
        Self { kind, flags, stream, reserved: false, length: payload.len(), payload }
    }

    pub fn settings(values: &[(u16, u32)]) -> Self {
        let payload = values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        Self::new(SETTINGS, 0, 0, payload.collect())
    }

    pub fn window_update(stream: u32, increment: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, increment.to_be_bytes().to_vec())
    }

    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(RST_STREAM, 0, stream, code.to_be_bytes().to_vec())
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether this is HEADERS with a priority that makes its stream depend on itself.
    pub fn depends_on_itself(&self) -> bool {
        let at = usize::from(self.has(PADDED));
        self.has(PRIORITY_FLAG) && self.payload.len() >= at + 4 && self.number(at) & 0x7fff_ffff == self.stream
    }

    /// The big-endian number at `at` in the payload.
    pub fn number(&self, at: usize) -> u32 {
        self.payload.get(at..at + 4).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()))
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.length as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        let reserved = u32::from(self.reserved) << 31;
        out.extend_from_slice(&(self.stream | reserved).to_be_bytes());
        out.extend_from_slice(&self.payload);
    }

    /// The frames that a peer sees. They differ from `frames` if a length is wrong. An incomplete frame at the end is
    /// left out.
    pub fn as_received(frames: &[Frame]) -> Vec<Frame> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let mut rest = &bytes[..];
        std::iter::from_fn(|| Frame::read(&mut rest)).collect()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.payload.len());
        self.write(&mut out);
        out
    }

    /// Takes the frame off the front of `bytes`, if it is complete.
    pub fn read(bytes: &mut &[u8]) -> Option<Self> {
        let length = u32::from_be_bytes([0, *bytes.first()?, *bytes.get(1)?, *bytes.get(2)?]) as usize;
        let frame = bytes.get(..9 + length)?;
        *bytes = &bytes[9 + length..];
        let stream = u32::from_be_bytes(frame[5..9].try_into().unwrap());
        Some(Self {
            kind: frame[3],
            flags: frame[4],
            stream: stream & 0x7fff_ffff,
            reserved: stream >> 31 == 1,
            length,
            payload: frame[9..].to_vec(),
        })
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KINDS: [&str; 10] = [
            "DATA",
            "HEADERS",
            "PRIORITY",
            "RST_STREAM",
            "SETTINGS",
            "PUSH_PROMISE",
            "PING",
            "GOAWAY",
            "WINDOW_UPDATE",
            "CONTINUATION",
        ];
        match KINDS.get(self.kind as usize) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "kind {}", self.kind)?,
        }
        write!(f, " flags={:#04x} stream={}", self.flags, self.stream)?;
        if self.reserved {
            f.write_str(" reserved")?;
        }
        if self.length != self.payload.len() {
            write!(f, " claims={}", self.length)?;
        }
        let shown = &self.payload[..self.payload.len().min(60)];
        write!(f, " {} bytes {}", self.payload.len(), shown.escape_ascii())
    }
}
