//! A connection's streams.

/// A stream of one connection. It stays distinct after the stream has ended: what is then asked of it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    id: u32,
    /// Where its entry is (or was), so that the user's calls find it without a look-up.
    slot: u32,
}

impl StreamId {
    pub(crate) fn new(id: u32, slot: u32) -> StreamId {
        StreamId { id, slot }
    }

    /// The identifier on the wire.
    pub fn get(self) -> u32 {
        self.id
    }
}
