//! What a peer may cost: every count, size and rate of a connection.

use std::time::{Duration, Instant};

/// How often something may happen: a token bucket.
#[derive(Clone, Debug)]
pub struct Rate {
    /// So many at once.
    pub burst: u32,
    /// So many a second in the long run.
    pub per_second: u32,
}

/// When to ask whether a silent peer is still there.
#[derive(Clone, Debug)]
pub struct KeepAlive {
    /// A PING is sent when nothing was received for so long.
    pub interval: Duration,
    /// The connection is given up when nothing was received for so long after the PING.
    pub timeout: Duration,
}

/// The limits of a connection. What is beyond one is a connection error (ENHANCE_YOUR_CALM) or a stream error, never
/// more memory.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams that the peer may have open at once (SETTINGS_MAX_CONCURRENT_STREAMS); more are refused.
    pub streams: u32,
    /// How much the peer may send on a stream before it is released (SETTINGS_INITIAL_WINDOW_SIZE).
    pub stream_window_bytes: u32,
    /// How much the peer may send on all streams before it is released. At least 65,535, with which HTTP/2 begins.
    pub connection_window_bytes: u32,
    /// The largest frame that is accepted (SETTINGS_MAX_FRAME_SIZE): 16,384 to 16,777,215.
    pub frame_bytes: u32,
    /// The largest header list that is accepted (SETTINGS_MAX_HEADER_LIST_SIZE; names, values and 32 for each field).
    pub header_list_bytes: u32,
    /// CONTINUATION frames in one header block.
    pub header_block_frames: u32,
    /// The HPACK table of the peer's encoder (SETTINGS_HEADER_TABLE_SIZE), and the cap of our own.
    pub table_bytes: u32,
    /// Unsent output from which on no more DATA is framed and the driver should stop reading.
    pub output_bytes: usize,
    /// Unsent answers that the peer provoked (acknowledgements, resets). Past it the peer asks but does not read.
    pub control_output_bytes: usize,
    /// DATA received and not yet released, of all streams, up to which the connection's window is handed back at
    /// once, so that one slow stream does not stall the others. 0: the window comes back only as data is released.
    pub buffered_bytes: usize,
    /// RST_STREAM by the peer of streams that were not answered yet (rapid reset, CVE-2023-44487).
    pub cancels: Rate,
    /// Streams that we reset because the peer broke a rule on them (CVE-2025-8671).
    pub stream_errors: Rate,
    /// PING frames that want an answer. To be generous with: estimators of bandwidth send one in each round trip.
    pub pings: Rate,
    /// SETTINGS frames after the first.
    pub settings: Rate,
    /// Frames that carry nothing: empty DATA without END_STREAM, PRIORITY, unknown frames, and WINDOW_UPDATEs beyond
    /// those that our own DATA explains.
    pub empty_frames: Rate,
    /// Servers: DATA frames of fewer than [`SMALL_DATA_BYTES`](Limits::SMALL_DATA_BYTES) that do not end a stream.
    pub small_data: Rate,
    /// Changes of the size of the HPACK table by the peer's encoder, each of which may empty it.
    pub table_changes: Rate,
    /// Closed streams that are remembered, to tell frames that were under way from errors.
    pub closed_streams: usize,
    /// How long the peer may take for its preface and the acknowledgement of our SETTINGS, and for a header block.
    pub settings_timeout: Duration,
    /// Asking whether a silent peer is still there; `None`: never.
    pub keep_alive: Option<KeepAlive>,
    /// Clients: whether a stream that the server may not have looked at yet is reset only once it has. A server that
    /// finds requests and their ends in one read takes them for an attack (CVE-2023-44487), and ends the connection for
    /// all who share it.
    pub are_cancels_paced: bool,
    /// Servers: whether clients may use RFC 8441's extended CONNECT (SETTINGS_ENABLE_CONNECT_PROTOCOL).
    pub is_connect_protocol_enabled: bool,
}

impl Limits {
    /// What the begin of a gRPC message takes: less in a frame is more head than data, and no message.
    pub const SMALL_DATA_BYTES: usize = 5;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            streams: 256,
            stream_window_bytes: 256 << 10,
            connection_window_bytes: 1 << 20,
            frame_bytes: 16 << 10,
            header_list_bytes: 16 << 10,
            header_block_frames: 8,
            table_bytes: 4096,
            output_bytes: 256 << 10,
            control_output_bytes: 16 << 10,
            buffered_bytes: 0,
            cancels: Rate { burst: 200, per_second: 100 },
            stream_errors: Rate { burst: 100, per_second: 20 },
            pings: Rate { burst: 1000, per_second: 1000 },
            settings: Rate { burst: 10, per_second: 1 },
            empty_frames: Rate { burst: 1000, per_second: 500 },
            small_data: Rate { burst: 50_000, per_second: 20_000 },
            table_changes: Rate { burst: 100, per_second: 10 },
            closed_streams: 256,
            settings_timeout: Duration::from_secs(10),
            keep_alive: None,
            are_cancels_paced: false,
            is_connect_protocol_enabled: false,
        }
    }
}

/// What is left of a [`Rate`]. Filled only when it is empty, so that counting costs a subtraction.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: &Rate, now: Instant) -> Bucket {
        Bucket { tokens: rate.burst, filled: now }
    }

    /// Takes one. `false`: the rate is exceeded.
    #[inline]
    pub(crate) fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        if self.tokens == 0 {
            self.fill(rate, now);
        }
        let is_within = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        is_within
    }

    #[cold]
    fn fill(&mut self, rate: &Rate, now: Instant) {
        let earned = now.saturating_duration_since(self.filled).as_micros() * u128::from(rate.per_second) / 1_000_000;
        if earned > 0 {
            self.tokens = u32::try_from(earned).unwrap_or(u32::MAX).min(rate.burst);
            self.filled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { burst: 3, per_second: 2 };
        let start = Instant::now();
        let mut bucket = Bucket::new(&rate, start);
        assert_eq!([(); 5].map(|()| bucket.take(&rate, start)), [true, true, true, false, false]);
        let later = start + Duration::from_millis(600);
        assert_eq!([bucket.take(&rate, later), bucket.take(&rate, later)], [true, false]);
        let much_later = later + Duration::from_secs(3600);
        assert_eq!([(); 4].map(|()| bucket.take(&rate, much_later)), [true, true, true, false]);
    }

    #[test]
    fn a_rate_of_nothing_allows_nothing() {
        let rate = Rate { burst: 0, per_second: 0 };
        let start = Instant::now();
        assert!(!Bucket::new(&rate, start).take(&rate, start + Duration::from_secs(9)));
    }
}
