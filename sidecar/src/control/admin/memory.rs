//! What uses the memory of the process, as far as that is known without a counting allocator.

use std::{collections::HashMap, fs};

use prost::Message;
use weft_contracts::weft::admin::v1::{
    Memory, WatchedService,
    live_call::Direction,
    memory::{Account, Holder, Resident},
};

use crate::{
    shared::{
        Shared,
        survey::{Report, largest},
    },
    telemetry::metrics::{CallLabels, CallMetrics},
};

/// The kernel's figures, and what the sidecar counts itself.
pub(super) fn of(shared: &Shared, reports: &[Option<Report>], services: &[WatchedService]) -> Memory {
    let sum = |of: fn(&Report) -> usize| reports.iter().flatten().map(of).sum::<usize>();
    let account =
        |name: &str, bytes: usize, what: &str| Account { name: name.into(), bytes: bytes as u64, what: what.into() };
    let mut accounts = vec![
        account(
            "connections",
            sum(|report| report.sum.buffer_bytes + report.sockets_buffer_bytes),
            "buffers of connections: unsent output, data that waits for a window, header lists for the next calls",
        ),
        account(
            "under way",
            sum(|report| report.held_bytes),
            "bytes of calls that connections hold, limited by --memory, half for each side: received and not yet \
             forwarded, or waiting to be written",
        ),
        account("requests", sum(|report| report.replay_bytes), "bodies that are kept so that calls can be retried"),
        account(
            "spare buffers",
            sum(|report| report.spare_bytes),
            "for the next reads, and for the next calls' bodies",
        ),
        account(
            "services",
            services.iter().map(Message::encoded_len).sum(),
            "what is known of the called services, as the size of its messages; in memory it is several times as large",
        ),
        account(
            "metrics",
            shared.metrics.labels().len() * (size_of::<CallMetrics>() + size_of::<CallLabels>()),
            "rows of call metrics, without their names",
        ),
    ];
    if let Some(spans) = &shared.spans {
        let bytes = spans.queued() * size_of::<opentelemetry_sdk::trace::SpanData>();
        accounts.push(account("spans", bytes, "spans that wait for export, without their attributes"));
    }
    accounts.sort_by_key(|account| std::cmp::Reverse(account.bytes));
    let callers = holders(reports, Direction::Inbound, |report| &report.callers);
    let callees = holders(reports, Direction::Outbound, |report| &report.callees);
    Memory { resident: resident(), accounts, holders: callers.chain(callees).collect() }
}

/// The peers of one side that hold most, on all workers together.
fn holders(
    reports: &[Option<Report>],
    direction: Direction,
    of: fn(&Report) -> &Vec<(String, usize)>,
) -> impl Iterator<Item = Holder> {
    let mut sums: HashMap<&str, usize> = HashMap::new();
    for (peer, bytes) in reports.iter().flatten().flat_map(of) {
        *sums.entry(peer).or_default() += bytes;
    }
    let sums = sums.into_iter().map(|(peer, bytes)| (peer.to_owned(), bytes)).collect();
    let holder = move |(peer, bytes)| Holder { direction: direction.into(), peer, bytes: bytes as u64 };
    largest(sums).into_iter().map(holder)
}

/// From `/proc`; `None` on systems without it.
fn resident() -> Option<Resident> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let (rollup, status) = (fields(&rollup), fields(&status));
    let resident_bytes = *rollup.get("Rss")?;
    let anonymous_bytes = *rollup.get("Anonymous")?;
    Some(Resident {
        resident_bytes,
        proportional_bytes: *rollup.get("Pss")?,
        anonymous_bytes,
        file_bytes: resident_bytes.saturating_sub(anonymous_bytes),
        swapped_bytes: rollup.get("Swap").copied().unwrap_or_default(),
        peak_bytes: *status.get("VmHWM")?,
    })
}

/// The values of lines such as `Rss:    10240 kB`, in bytes.
fn fields(text: &str) -> HashMap<&str, u64> {
    let field = |line: &'_ str| -> Option<(usize, u64)> {
        let (name, value) = line.split_once(':')?;
        let kilobytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((name.len(), kilobytes * 1024))
    };
    text.lines().filter_map(|line| field(line).map(|(name, bytes)| (&line[..name], bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_anonymous_or_of_files() {
        let resident = resident().expect("Linux has /proc");
        assert!(resident.resident_bytes > 1 << 20 && resident.peak_bytes >= resident.resident_bytes, "{resident:?}");
        assert_eq!(resident.anonymous_bytes + resident.file_bytes, resident.resident_bytes);
        assert!(resident.proportional_bytes <= resident.resident_bytes, "{resident:?}");
    }
}
