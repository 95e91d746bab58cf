//! Stacks, met while it was looked.

use std::{collections::BTreeMap, time::Duration};

use pprof::{Frames, ProfilerGuardBuilder};
use tokio::time::sleep;

/// Looks for each second of the CPU's time. No divisor of what timers do: else only those would be met.
pub(super) const LOOKS_A_SECOND: i32 = 99;

/// Where unwinding is not safe: code with no description of its frames, and the unwinder itself.
const LEFT_OUT: [&str; 2] = ["libgcc", "vdso"];

/// Frames from the outermost on, of which the first is the thread's name, and how often they were met.
pub(super) type Stacks = BTreeMap<Vec<String>, u64>;

pub(super) async fn of(time: Duration) -> Result<Stacks, String> {
    let guard = ProfilerGuardBuilder::default().frequency(LOOKS_A_SECOND).blocklist(&LEFT_OUT).build();
    // Dropped, also half-way, it stops.
    let guard = guard.map_err(|error| error.to_string())?;
    sleep(time).await;
    // Finding the names takes a while, which is not the control side's to wait for.
    let report = tokio::task::spawn_blocking(move || guard.report().build());
    let report = report.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let mut stacks = Stacks::new();
    for (frames, count) in report.data {
        *stacks.entry(named(&frames)).or_default() += count.max(0) as u64;
    }
    Ok(stacks)
}

/// What the sampler itself runs in the place that it looks at.
const SAMPLER: [&str; 4] = ["perf_signal_handler", "__restore_rt", "pprof::", "<pprof::"];

fn named(frames: &Frames) -> Vec<String> {
    let functions = frames.frames.iter().rev().flat_map(|frame| frame.iter().rev()).map(|function| function.name());
    let functions = functions.take_while(|name| !SAMPLER.iter().any(|begin| name.starts_with(begin)));
    // `;` separates frames in the collapsed form.
    let functions = functions.map(|name| name.replace(';', ","));
    std::iter::once(frames.thread_name_or_id()).chain(functions).collect()
}

/// A line a stack, as flame graph programs read it.
pub(super) fn collapsed(stacks: &Stacks) -> String {
    stacks.iter().map(|(stack, count)| format!("{} {count}\n", stack.join(";"))).collect()
}
