//! How much a connection holds, for budgets and for the inspection of a running program.

use super::Connection;

/// The memory for streams counts as held only beyond this. It is kept as long as one stream is open.
const UNCOUNTED_STREAM_BYTES: usize = 16 << 10;

/// How much a connection holds at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Streams that have not ended.
    pub streams: usize,
    /// Bytes of DATA that the user has received and not released, mostly because of slow readers.
    pub held_bytes: usize,
    /// Bytes that wait to be written.
    pub output_bytes: usize,
    /// Memory of the output, of data that waits for a window, and of header lists that are kept for reuse.
    pub buffer_bytes: usize,
}

impl<T> Connection<T> {
    /// The values attached to its streams, in no particular order. It walks through all streams, so it is not for the
    /// per-call path.
    pub fn attached(&self) -> impl Iterator<Item = &T> {
        self.streams.iter().filter_map(|stream| stream.call.as_ref())
    }

    /// Bytes that it holds now: [`held_bytes`](Self::held_bytes), unsent output, and the memory of very many streams.
    /// Data that waits for a window is not included: the connection that it came from counts it as held.
    #[inline]
    pub fn held_and_unsent_bytes(&self) -> usize {
        let streams = self.streams.bytes().saturating_sub(UNCOUNTED_STREAM_BYTES);
        self.held_bytes() + self.output.len() + streams
    }

    /// Bytes of DATA that the user has received and not released, and of a field block that is not complete.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes + self.block.len()
    }

    /// Whether something waits to be sent, in the output or for a window.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        self.output.len() > 0 || !self.queues.is_empty()
    }

    /// How much it holds now. It walks through all buffers, so it is not for the per-call path.
    pub fn usage(&self) -> Usage {
        Usage {
            streams: self.streams.len(),
            held_bytes: self.held_bytes,
            output_bytes: self.output.len(),
            buffer_bytes: self.output.bytes.capacity() + self.queues.capacity_bytes() + self.spare.bytes(),
        }
    }
}
