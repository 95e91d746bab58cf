//! SETTINGS, in both directions (RFC 9113 section 6.5).

use std::time::Instant;

use super::event::{Bound, ConnectionError, Event, Taken};
use super::{Connection, INITIAL_TABLE_BYTES};
use crate::code::Code;
use crate::flow::{INITIAL_WINDOW, MAX_WINDOW};
use crate::frame::{self, FRAME_BYTES, HEAD_BYTES, Head, flag, kind, setting};
use crate::stream::NO_QUEUE;

/// How many streams may be open before the peer's SETTINGS have come: the minimum that section 6.5.2 recommends peers
/// to allow.
const STREAMS_BEFORE_SETTINGS: u32 = 100;

/// The peer's settings.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) has_settings: bool,
    pub(super) streams: u32,
    pub(super) stream_window: i32,
    pub(super) frame_bytes: usize,
    pub(super) header_list_bytes: u32,
    pub(super) is_connect_protocol_enabled: bool,
}

impl Peer {
    pub(super) fn new() -> Peer {
        Peer {
            has_settings: false,
            streams: STREAMS_BEFORE_SETTINGS,
            stream_window: INITIAL_WINDOW,
            frame_bytes: *FRAME_BYTES.start() as usize,
            header_list_bytes: u32::MAX,
            is_connect_protocol_enabled: false,
        }
    }
}

impl<T: Clone> Connection<T> {
    /// The largest frame that the peer may send.
    #[inline]
    pub(super) fn frame_bytes(&self) -> usize {
        self.limits.frame_bytes.clamp(*FRAME_BYTES.start(), *FRAME_BYTES.end()) as usize
    }

    /// Sends our SETTINGS, except those with their default value, and a WINDOW_UPDATE for the rest of the connection's
    /// window.
    pub(super) fn send_settings(&mut self) {
        let limits = self.limits.clone();
        let mut payload = Vec::with_capacity(48);
        let mut say = |name, value, default| {
            if value != default {
                frame::write_setting(name, value, &mut payload);
            }
        };
        say(setting::HEADER_TABLE_SIZE, limits.table_bytes, INITIAL_TABLE_BYTES);
        if self.is_server {
            say(setting::MAX_CONCURRENT_STREAMS, limits.streams, u32::MAX);
            say(setting::ENABLE_CONNECT_PROTOCOL, limits.is_connect_protocol_enabled.into(), 0);
        } else {
            say(setting::ENABLE_PUSH, 0, 1);
        }
        say(setting::INITIAL_WINDOW_SIZE, limits.stream_window_bytes.min(MAX_WINDOW), INITIAL_WINDOW as u32);
        say(setting::MAX_FRAME_SIZE, self.frame_bytes() as u32, *FRAME_BYTES.start());
        say(setting::MAX_HEADER_LIST_SIZE, limits.header_list_bytes, u32::MAX);
        Head::write(kind::SETTINGS, 0, 0, &payload, &mut self.output.bytes);
        let more = limits.connection_window_bytes.min(MAX_WINDOW).saturating_sub(INITIAL_WINDOW as u32);
        if more > 0 && self.receive_window.add(i64::from(more)) {
            self.write_window_update(0, more);
        }
    }

    #[cold]
    pub(super) fn take_settings<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if head.stream != 0 {
            return Err(ConnectionError::protocol("SETTINGS on a stream"));
        }
        if !payload.len().is_multiple_of(6) || (head.has(flag::ACK) && !payload.is_empty()) {
            return Err(ConnectionError::frame_size("SETTINGS have a wrong length"));
        }
        if head.has(flag::ACK) {
            return self.apply_own_settings(now).map(|()| None);
        }
        if self.peer.has_settings {
            self.count(Bound::Settings, now)?;
        }
        for (name, value) in frame::settings(payload) {
            self.apply_setting(name, value)?;
        }
        self.peer.has_settings = true;
        Head::write(kind::SETTINGS, flag::ACK, 0, &[], &mut self.output.bytes);
        self.count_answer(HEAD_BYTES)?;
        self.send_queued();
        Ok(Some(Event::Settings))
    }

    fn apply_setting(&mut self, name: u16, value: u32) -> Result<(), ConnectionError> {
        match name {
            setting::HEADER_TABLE_SIZE => self.encoder.set_peer_table_bytes(value),
            setting::ENABLE_PUSH if value > 1 || (value == 1 && !self.is_server) => {
                return Err(ConnectionError::protocol("SETTINGS_ENABLE_PUSH has a value that is not allowed"));
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.streams = value,
            setting::INITIAL_WINDOW_SIZE => self.apply_peer_window(value)?,
            setting::MAX_FRAME_SIZE if !FRAME_BYTES.contains(&value) => {
                return Err(ConnectionError::protocol("SETTINGS_MAX_FRAME_SIZE is out of its range"));
            }
            setting::MAX_FRAME_SIZE => self.peer.frame_bytes = value as usize,
            setting::MAX_HEADER_LIST_SIZE => self.peer.header_list_bytes = value,
            setting::ENABLE_CONNECT_PROTOCOL => {
                // RFC 8441 section 3: once sent as 1, it must not go back to 0.
                if value > 1 || (value == 0 && self.peer.is_connect_protocol_enabled) {
                    return Err(ConnectionError::protocol(
                        "SETTINGS_ENABLE_CONNECT_PROTOCOL has a value that is not allowed",
                    ));
                }
                self.peer.is_connect_protocol_enabled = value == 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// Changes the send windows of all streams by the difference (section 6.9.2).
    fn apply_peer_window(&mut self, value: u32) -> Result<(), ConnectionError> {
        const TOO_LARGE: ConnectionError =
            ConnectionError::new(Code::FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE makes a window exceed 2^31-1");
        let window = i32::try_from(value).map_err(|_| TOO_LARGE)?;
        let change = i64::from(window) - i64::from(self.peer.stream_window);
        self.peer.stream_window = window;
        if change == 0 {
            return Ok(());
        }
        for slot in self.streams.slots() {
            let stream = self.streams.at(slot);
            if stream.id == 0 {
                continue;
            }
            if !stream.send_window.add(change) {
                return Err(TOO_LARGE);
            }
            if stream.queue != NO_QUEUE {
                self.make_ready(slot);
            }
        }
        Ok(())
    }

    /// The peer has acknowledged our SETTINGS, and has changed the windows of all streams: we change them, too.
    fn apply_own_settings(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.timers.settings.take().is_none() {
            // The acknowledgement is not of our first SETTINGS. If it is not of a cancel's either, it acknowledges
            // nothing.
            return if self.release_cancels() { Ok(()) } else { self.count(Bound::EmptyFrames, now) };
        }
        let window = self.limits.stream_window_bytes.min(MAX_WINDOW) as i32;
        let change = i64::from(window) - i64::from(self.stream_window);
        self.stream_window = window;
        for (_, stream) in self.streams.iter_mut() {
            stream.receive_window.add(change);
        }
        if self.limits.table_bytes < INITIAL_TABLE_BYTES {
            self.decoder.set_max_table_bytes(self.limits.table_bytes);
        }
        Ok(())
    }
}
