//! The rows of the table of limits that the HTTP/2 core enforces.

use std::sync::Arc;

use weft_mesh::limits;
use weft_wire::{Bound, KeepAlive, Limits, Rate};

/// The limits of a worker's connections.
pub(crate) struct WireLimits {
    /// For connections that other sidecars have made: each belongs to one peer.
    pub(crate) mesh: Arc<Limits>,
    /// For connections to other sidecars, which carry the calls of all clients.
    pub(crate) mesh_made: Arc<Limits>,
    /// For connections with the local service and its clients. They get no PINGs: both ends are on one machine, and
    /// gRPC servers take a PING every few seconds for an attack. Cancels are paced, because servers also take calls
    /// that are cancelled before they were processed for an attack, and a caller's other calls share the connection.
    pub(crate) local: Arc<Limits>,
}

impl WireLimits {
    /// `header_list_bytes`: the longest header list of a call.
    pub(crate) fn new(header_list_bytes: u32) -> Self {
        let keep_alive = KeepAlive { interval: limits::IDLE_PING_INTERVAL, timeout: limits::KEEP_ALIVE_TIMEOUT };
        let mesh_list_bytes = header_list_bytes.saturating_add(limits::HEADER_LIST_ROOM);
        let mesh = Limits {
            header_list_bytes: mesh_list_bytes,
            // As many as such a list takes if none of it is compressed.
            header_block_frames: limits::HEADER_BLOCK_FRAMES.max(mesh_list_bytes.div_ceil(limits::MAX_FRAME_BYTES)),
            small_data: local_rate(limits::SMALL_DATA),
            keep_alive: Some(keep_alive),
            ..common(rate)
        };
        let local = Limits {
            header_list_bytes,
            header_block_frames: limits::HEADER_BLOCK_FRAMES_LOCAL,
            cancels: rate(limits::CANCELS),
            small_data: rate(limits::SMALL_DATA),
            are_cancels_paced: true,
            buffered_bytes: UNBOUNDED,
            ..common(local_rate)
        };
        let mesh_made = Limits { buffered_bytes: UNBOUNDED, ..mesh.clone() };
        Self { mesh: Arc::new(mesh), mesh_made: Arc::new(mesh_made), local: Arc::new(local) }
    }
}

/// Such a connection carries the calls of several peers, and a peer that does not read must not hold back the bytes of
/// others. [`crate::shared::budget`] bounds what each of them holds.
const UNBOUNDED: usize = usize::MAX;

fn common(rate: impl Fn(limits::Rate) -> Rate) -> Limits {
    Limits {
        streams: limits::STREAMS_PER_CONNECTION,
        stream_window_bytes: limits::STREAM_WINDOW_BYTES,
        connection_window_bytes: limits::CONNECTION_WINDOW_BYTES,
        frame_bytes: limits::MAX_FRAME_BYTES,
        header_list_bytes: limits::HEADER_LIST_BYTES,
        header_block_frames: limits::HEADER_BLOCK_FRAMES,
        table_bytes: limits::HPACK_TABLE_BYTES,
        output_bytes: limits::SEND_BUFFER_BYTES,
        control_output_bytes: limits::CONTROL_OUTPUT_BYTES,
        buffered_bytes: limits::CONNECTION_BUFFER_BYTES,
        cancels: rate(limits::CANCELS),
        stream_errors: rate(limits::STREAM_ERRORS),
        pings: rate(limits::PINGS),
        settings: rate(limits::SETTINGS),
        empty_frames: rate(limits::EMPTY_FRAMES),
        small_data: rate(limits::SMALL_DATA),
        table_changes: rate(limits::HPACK_TABLE_CHANGES),
        flood_time: limits::FLOOD_TIME,
        closed_streams: limits::RESET_STREAMS_KEPT,
        settings_timeout: limits::HTTP2_TIMEOUT,
        keep_alive: None,
        are_cancels_paced: false,
        is_connect_protocol_enabled: true,
    }
}

/// The name of a bound's row in the table of limits.
pub(crate) fn row(bound: Bound) -> &'static str {
    match bound {
        Bound::HeaderBlockFrames => "HEADER_BLOCK_FRAMES",
        Bound::SettingsTimeout => "HTTP2_TIMEOUT",
        Bound::ControlOutputBytes => "CONTROL_OUTPUT_BYTES",
        Bound::Cancels => "CANCELS",
        Bound::StreamErrors => "STREAM_ERRORS",
        Bound::Pings => "PINGS",
        Bound::Settings => "SETTINGS",
        Bound::EmptyFrames => "EMPTY_FRAMES",
        Bound::SmallData => "SMALL_DATA",
        Bound::TableChanges => "HPACK_TABLE_CHANGES",
    }
}

fn rate((burst, per_second, frames_per_token): limits::Rate) -> Rate {
    Rate { burst, per_second, frames_per_token }
}

/// A rate for the local service and its clients.
fn local_rate((burst, per_second, frames_per_token): limits::Rate) -> Rate {
    rate((burst * limits::LOCAL_ROOM, per_second * limits::LOCAL_ROOM, frames_per_token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_of_the_core_has_a_row_in_the_table() {
        for bound in [
            Bound::HeaderBlockFrames,
            Bound::SettingsTimeout,
            Bound::ControlOutputBytes,
            Bound::Cancels,
            Bound::StreamErrors,
            Bound::Pings,
            Bound::Settings,
            Bound::EmptyFrames,
            Bound::SmallData,
            Bound::TableChanges,
        ] {
            assert!(limits::ALL.iter().any(|limit| limit.name == row(bound)), "{bound:?}");
        }
    }
}
