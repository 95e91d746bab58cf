//! How much a peer may cost us: the limit of every count, size and rate of a connection.

use std::time::{Duration, Instant};

/// How often something may happen: a token bucket. Time refills it, and so do useful frames.
#[derive(Clone, Debug)]
pub struct Rate {
    /// The size of the bucket: how many may come at once.
    pub burst: u32,
    /// How many tokens are added each second.
    pub per_second: u32,
    /// How many useful frames add one token; 0: they add none. Frames that come along with useful work are not a flood,
    /// however fast they come.
    pub frames_per_token: u32,
}

/// When a PING checks whether a silent peer is still there.
#[derive(Clone, Debug)]
pub struct KeepAlive {
    /// A PING is sent when nothing was received for this long.
    pub interval: Duration,
    /// The connection is closed when nothing was received for this long after the PING.
    pub timeout: Duration,
}

/// The limits of a connection. Exceeding one is a stream error or a connection error; it never costs more memory.
///
/// A peer that exceeds a [`Rate`] is slowed down first: nothing is read from it until it is back within the rate
/// ([`is_paused`](crate::Connection::is_paused)). If it goes on for [`flood_time`](Limits::flood_time), its connection
/// is drained, so that its calls can finish and new ones use another connection. If a client still goes on after that,
/// the server closes the connection (ENHANCE_YOUR_CALM).
///
/// Useful frames are well-formed header and trailer sections, and DATA that carries something, in either direction. For
/// [`cancels`](Limits::cancels) and, on a server, for [`stream_errors`](Limits::stream_errors), responses count instead
/// of useful frames.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams that the peer may have open at once (SETTINGS_MAX_CONCURRENT_STREAMS); more are refused.
    pub streams: u32,
    /// How much unreleased DATA the peer may send on a stream (SETTINGS_INITIAL_WINDOW_SIZE).
    pub stream_window_bytes: u32,
    /// How much unreleased DATA the peer may send on all streams. At least 65,535, which is HTTP/2's initial value.
    pub connection_window_bytes: u32,
    /// The largest frame that is accepted (SETTINGS_MAX_FRAME_SIZE): 16,384 to 16,777,215.
    pub frame_bytes: u32,
    /// The largest header list that is accepted (SETTINGS_MAX_HEADER_LIST_SIZE; names, values and 32 for each field).
    pub header_list_bytes: u32,
    /// CONTINUATION frames in one field block.
    pub header_block_frames: u32,
    /// The dynamic table of the peer's encoder (SETTINGS_HEADER_TABLE_SIZE), and the cap for our encoder's.
    pub table_bytes: u32,
    /// With this much unsent output, no more DATA frames are made and the driver should stop reading.
    pub output_bytes: usize,
    /// With this many bytes of unsent replies that the peer provoked (acknowledgements, resets), the driver should stop
    /// reading: the peer sends but does not read. At four times as much the connection ends.
    pub control_output_bytes: usize,
    /// As long as all streams together hold no more than this much unreleased DATA, the connection's window is
    /// replenished when DATA is received, so that one slow stream does not stall the others. 0: it is replenished only
    /// as DATA is released.
    pub buffered_bytes: usize,
    /// RST_STREAM frames from the peer for streams without a response yet (rapid reset, CVE-2023-44487).
    pub cancels: Rate,
    /// Streams that we reset because the peer broke a rule on them (CVE-2025-8671).
    pub stream_errors: Rate,
    /// PING frames without ACK. gRPC's bandwidth estimator sends one for each DATA frame that it receives.
    pub pings: Rate,
    /// SETTINGS frames after the first.
    pub settings: Rate,
    /// Frames that carry nothing: empty DATA without END_STREAM, PRIORITY, unknown frames, WINDOW_UPDATEs. A DATA frame
    /// that we send counts as two useful frames, as the peer may answer it with two WINDOW_UPDATEs.
    pub empty_frames: Rate,
    /// Servers: DATA frames of fewer than [`SMALL_DATA_BYTES`](Limits::SMALL_DATA_BYTES) that do not end a stream.
    pub small_data: Rate,
    /// Dynamic table size updates by the peer's encoder; each may empty the table.
    pub table_changes: Rate,
    /// How long a peer may exceed a rate, slowed down, before its connection is drained. After the same time again, a
    /// server closes it.
    pub flood_time: Duration,
    /// How many closed streams are remembered, to tell late frames from errors.
    pub closed_streams: usize,
    /// How long the peer may take for its preface and the acknowledgement of our SETTINGS, and for a field block.
    pub settings_timeout: Duration,
    /// The check whether a silent peer is still there; `None`: no check.
    pub keep_alive: Option<KeepAlive>,
    /// Clients: whether a stream is reset only once the server has processed its request. A server that finds requests
    /// and their RST_STREAMs in one read takes them for an attack (CVE-2023-44487), and closes the connection that all
    /// calls share.
    pub are_cancels_paced: bool,
    /// Servers: whether clients may use RFC 8441's extended CONNECT (SETTINGS_ENABLE_CONNECT_PROTOCOL).
    pub is_connect_protocol_enabled: bool,
}

impl Limits {
    /// The length of a gRPC message's prefix. A frame with less is mostly frame header, and holds no message.
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
            cancels: Rate { burst: 200, per_second: 100, frames_per_token: 1 },
            stream_errors: Rate { burst: 100, per_second: 20, frames_per_token: 1 },
            pings: Rate { burst: 1000, per_second: 1000, frames_per_token: 1 },
            settings: Rate { burst: 10, per_second: 1, frames_per_token: 16 },
            empty_frames: Rate { burst: 1000, per_second: 500, frames_per_token: 1 },
            small_data: Rate { burst: 50_000, per_second: 20_000, frames_per_token: 1 },
            table_changes: Rate { burst: 100, per_second: 10, frames_per_token: 1 },
            flood_time: Duration::from_secs(10),
            closed_streams: 256,
            settings_timeout: Duration::from_secs(10),
            keep_alive: None,
            are_cancels_paced: false,
            is_connect_protocol_enabled: false,
        }
    }
}

/// The tokens left of a [`Rate`]; below 0 once it is exceeded. It is refilled only when it is empty, so that counting
/// costs a subtraction.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: i64,
    filled: Instant,
    /// Useful frames that have earned tokens already.
    spent_frames: u64,
}

/// The longest single pause. The rest of the debt is forgiven, so that a peer that floods in one read does not wait for
/// minutes.
const MOST_PAUSE: Duration = Duration::from_secs(1);

impl Bucket {
    pub(crate) fn new(rate: &Rate, now: Instant) -> Bucket {
        Bucket { tokens: i64::from(rate.burst), filled: now, spent_frames: 0 }
    }

    /// Takes one token; `frames` is the number of useful frames so far. When the rate is exceeded, the error says how
    /// long to wait until it no longer is.
    #[inline]
    pub(crate) fn take(&mut self, rate: &Rate, frames: u64, now: Instant) -> Result<(), Duration> {
        self.tokens -= 1;
        if self.tokens >= 0 { Ok(()) } else { self.fill(rate, frames, now) }
    }

    #[cold]
    fn fill(&mut self, rate: &Rate, frames: u64, now: Instant) -> Result<(), Duration> {
        let waited = now.saturating_duration_since(self.filled).as_micros();
        let earned = i64::try_from(waited * u128::from(rate.per_second) / 1_000_000).unwrap_or(i64::MAX);
        if earned > 0 {
            self.filled = now;
        }
        let per_token = u64::from(rate.frames_per_token);
        let worked = frames.saturating_sub(self.spent_frames).checked_div(per_token).unwrap_or(0);
        self.spent_frames += worked * per_token;
        let worked = i64::try_from(worked).unwrap_or(i64::MAX);
        // This call's token is taken already, so a full bucket now holds one less than the burst.
        self.tokens = self.tokens.saturating_add(earned).saturating_add(worked).min(i64::from(rate.burst) - 1);
        if self.tokens >= 0 {
            return Ok(());
        }
        self.tokens = self.tokens.max(-i64::from(rate.per_second) - 1);
        let owed_micros = self.tokens.unsigned_abs() * 1_000_000;
        let wait = owed_micros.checked_div(u64::from(rate.per_second)).map_or(MOST_PAUSE, Duration::from_micros);
        Err(wait.min(MOST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { burst: 3, per_second: 2, frames_per_token: 0 };
        let start = Instant::now();
        let mut bucket = Bucket::new(&rate, start);
        let mut take = |after_ms| bucket.take(&rate, 0, start + Duration::from_millis(after_ms));
        assert_eq!([(); 3].map(|()| take(0)), [Ok(()); 3]);
        let half_a_second = Duration::from_millis(500);
        assert_eq!(take(0), Err(half_a_second), "one too many");
        assert_eq!(take(500), Err(half_a_second), "the debt is paid first");
        assert_eq!(take(1_500), Ok(()));
        assert_eq!([(); 4].map(|()| take(3_600_000).is_ok()), [true, true, true, false]);
    }

    #[test]
    fn useful_frames_earn_tokens_once_and_never_more_than_the_burst() {
        let rate = Rate { burst: 3, per_second: 0, frames_per_token: 2 };
        let start = Instant::now();
        let mut bucket = Bucket::new(&rate, start);
        let mut take = |frames| bucket.take(&rate, frames, start).is_ok();
        assert_eq!([(); 4].map(|()| take(0)), [true, true, true, false]);
        assert!(!take(3), "three frames earn one token, and two were owed");
        assert!(take(8) && take(8) && !take(8), "those frames have already earned their tokens");
        assert_eq!([(); 4].map(|()| take(1_000_000)), [true, true, true, false]);
    }

    #[test]
    fn a_pause_is_bounded_and_a_rate_of_zero_allows_nothing() {
        let rate = Rate { burst: 1, per_second: 10, frames_per_token: 0 };
        let start = Instant::now();
        let mut bucket = Bucket::new(&rate, start);
        let waits = [(); 1000].map(|()| bucket.take(&rate, 0, start));
        assert_eq!(waits.last(), Some(&Err(MOST_PAUSE)));
        assert_eq!(bucket.take(&rate, 0, start + Duration::from_secs(2)), Ok(()));
        let nothing = Rate { burst: 0, per_second: 0, frames_per_token: 0 };
        assert!(Bucket::new(&nothing, start).take(&nothing, 9, start + Duration::from_secs(9)).is_err());
    }
}
