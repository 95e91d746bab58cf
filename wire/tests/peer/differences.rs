//! Finds where our connection and the h2 crate's differ.

use weft_wire::Headers;
use weft_wire::hpack::{Decoded, Decoder, HpackError, Malformed};

use super::blocks::List;
use super::frames::*;
use super::ours::Ours;
use super::script::Script;
use super::seen::Seen;
use super::theirs::Theirs;

/// The first frame of a script after which the two connections differ.
#[derive(Debug)]
pub struct Difference {
    pub at: usize,
    pub frame: Frame,
    pub ours: Seen,
    pub theirs: Seen,
    /// What was seen of both before the frame, when they did not differ yet.
    pub before: Seen,
    /// The field block that the frame completes.
    pub block: Option<Block>,
    /// The peer had sent GOAWAY before.
    pub is_going: bool,
    /// The frame belongs to a block whose stream depends on itself.
    pub is_self_dependent: bool,
}

/// A decoded field block.
#[derive(Debug)]
pub struct Block {
    pub list: List,
    pub decoded: Result<Decoded, HpackError>,
}

/// Feeds a script to both until they differ or a GOAWAY ends it.
pub fn compare(script: &Script) -> Option<Difference> {
    let (mut ours, mut theirs) = (Ours::new(script), Theirs::new(script));
    let mut reader = Reader::new();
    let (mut is_going, mut is_self_dependent) = (false, false);
    let mut before = ours.seen.clone();
    for (at, frame) in script.frames.iter().enumerate() {
        let bytes = frame.to_bytes();
        ours.feed(&bytes);
        theirs.feed(&bytes);
        let block = reader.read(frame);
        if frame.kind == HEADERS {
            is_self_dependent = frame.depends_on_itself();
        }
        if ours.seen.goaway.is_some() && ours.seen.goaway == theirs.seen.goaway {
            return None;
        }
        if ours.seen != theirs.seen {
            let (frame, ours, theirs) = (frame.clone(), ours.seen, theirs.seen);
            return Some(Difference { at, frame, ours, theirs, before, block, is_going, is_self_dependent });
        }
        // From here on h2's dynamic table is out of date: it does not decode a block whose stream depends on itself,
        // nor the rest of a block whose first frames were malformed.
        let is_malformed = |block: &Block| block.decoded.is_ok_and(|decoded| decoded.malformed.is_some());
        if is_self_dependent || frame.kind == CONTINUATION && block.as_ref().is_some_and(is_malformed) {
            return None;
        }
        before.clone_from(&ours.seen);
        is_going |= frame.kind == GOAWAY;
    }
    None
}

/// Decodes the field blocks of a script, to explain a difference.
struct Reader {
    decoder: Decoder,
    block: Vec<u8>,
}

impl Reader {
    fn new() -> Self {
        Self { decoder: Decoder::new(4096), block: Vec::new() }
    }

    fn read(&mut self, frame: &Frame) -> Option<Block> {
        let mut payload = &frame.payload[..];
        match frame.kind {
            HEADERS => {
                self.block.clear();
                if frame.has(PADDED) {
                    let (padding, rest) = payload.split_first()?;
                    payload = rest.get(..rest.len().checked_sub(*padding as usize)?)?;
                }
                if frame.has(PRIORITY_FLAG) {
                    payload = payload.get(5..)?;
                }
            }
            CONTINUATION => {}
            _ => return None,
        }
        self.block.extend_from_slice(payload);
        if !frame.has(END_HEADERS) {
            return None;
        }
        let mut headers = Headers::new();
        let decoded = self.decoder.decode(&self.block, usize::MAX, &mut headers);
        let list = headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        Some(Block { list, decoded })
    }
}

impl Difference {
    pub fn is_headers(&self) -> bool {
        matches!(self.frame.kind, HEADERS | CONTINUATION)
    }

    /// Whether both have sent GOAWAY, with these codes.
    pub fn both(&self, ours: u32, theirs: u32) -> bool {
        self.ours.goaway == Some(ours) && self.theirs.goaway == Some(theirs)
    }

    /// The code with which an implementation reset the frame's stream because of this frame.
    fn reset(&self, seen: &Seen) -> Option<u32> {
        let is_new = !self.before.resets.contains_key(&self.frame.stream);
        seen.resets.get(&self.frame.stream).copied().filter(|_| is_new && seen.goaway.is_none())
    }

    pub fn our_reset(&self) -> Option<u32> {
        self.reset(&self.ours)
    }

    pub fn their_reset(&self) -> Option<u32> {
        self.reset(&self.theirs)
    }

    pub fn is_decoded(&self) -> bool {
        self.block.as_ref().is_some_and(|block| block.decoded.is_ok())
    }

    pub fn malformed(&self) -> Option<Malformed> {
        self.block.as_ref()?.decoded.ok()?.malformed
    }

    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.block.as_ref()?.list.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| &value[..])
    }
}
