//! What a connection holds, for whoever looks into a program that runs.

use super::Connection;

/// The memory of open streams, in use or not, counts as held beyond this. It stays as long as one of them is open.
const UNCOUNTED_STREAM_BYTES: usize = 16 << 10;

/// What a connection holds at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Streams that have not ended.
    pub streams: usize,
    /// DATA that the user was given and has not released: what slow readers hold back.
    pub held_bytes: usize,
    /// What waits to be written.
    pub output_bytes: usize,
    /// Memory of what waits to be written, of what waits for a window, and of header lists that are kept to be used again.
    pub buffer_bytes: usize,
}

impl<T> Connection<T> {
    /// What is attached to its streams, in no order. Goes through all of them: not for a call's way.
    pub fn attached(&self) -> impl Iterator<Item = &T> {
        self.streams.iter().filter_map(|stream| stream.call.as_ref())
    }

    /// Bytes that it holds now: as [`held_bytes`](Self::held_bytes), what waits to be written, and the memory of very many
    /// streams. What waits for a window is not among them: it is DATA that the user has not released elsewhere.
    #[inline]
    pub fn held_and_unsent_bytes(&self) -> usize {
        let streams = self.streams.bytes().saturating_sub(UNCOUNTED_STREAM_BYTES);
        self.held_bytes() + self.output.len() + streams
    }

    /// DATA that the user was given and has not released, and what has come of a header block that is not complete.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes + self.block.len()
    }

    /// Whether something waits to be sent, be it for the peer to read or for its windows.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        self.output.len() > 0 || !self.queues.is_empty()
    }

    /// What it holds now. Goes through all its buffers: not for a call's way.
    pub fn usage(&self) -> Usage {
        Usage {
            streams: self.streams.len(),
            held_bytes: self.held_bytes,
            output_bytes: self.output.len(),
            buffer_bytes: self.output.bytes.capacity() + self.queues.capacity_bytes() + self.spare.bytes(),
        }
    }
}
