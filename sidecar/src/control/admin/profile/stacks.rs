//! Samples the stacks of all threads.

use std::{collections::BTreeMap, time::Duration};

use pprof::{Frames, ProfilerGuardBuilder};
use tokio::{task::spawn_blocking, time::sleep};

/// Samples per second of CPU time. Not a divisor of usual timer rates, so that sampling does not run in step with
/// timers.
pub(super) const LOOKS_A_SECOND: i32 = 99;

/// Libraries in which unwinding is not safe: code without a description of its frames, and the unwinder itself.
const LEFT_OUT: [&str; 2] = ["libgcc", "vdso"];

/// Frames, the outermost first, after the thread's name; and how often each stack was seen.
pub(super) type Stacks = BTreeMap<Vec<String>, u64>;

pub(super) async fn of(time: Duration) -> Result<Stacks, String> {
    // Both steps resolve names, which takes a while and must not block the control side. The first does so once, because
    // the signal handler must find the symbols loaded.
    let begin = || ProfilerGuardBuilder::default().frequency(LOOKS_A_SECOND).blocklist(&LEFT_OUT).build();
    // Sampling stops when the guard is dropped, also if this future is dropped early.
    let guard = unblocked(begin).await?;
    sleep(time).await;
    let report = unblocked(move || guard.report().build()).await?;
    let mut stacks = Stacks::new();
    for (frames, count) in report.data {
        *stacks.entry(named(&frames)).or_default() += count.max(0) as u64;
    }
    Ok(stacks)
}

/// Runs a step on a thread of its own.
async fn unblocked<T: Send + 'static>(step: impl FnOnce() -> pprof::Result<T> + Send + 'static) -> Result<T, String> {
    spawn_blocking(step).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// The sampler's own frames at the end of each stack.
const SAMPLER: [&str; 4] = ["perf_signal_handler", "__restore_rt", "pprof::", "<pprof::"];

fn named(frames: &Frames) -> Vec<String> {
    let functions = frames.frames.iter().rev().flat_map(|frame| frame.iter().rev()).map(|function| function.name());
    let functions = functions.take_while(|name| !SAMPLER.iter().any(|begin| name.starts_with(begin)));
    // `;` separates frames in the collapsed form.
    let functions = functions.map(|name| name.replace(';', ","));
    std::iter::once(frames.thread_name_or_id()).chain(functions).collect()
}

/// One line per stack, as flame graph programs read it.
pub(super) fn collapsed(stacks: &Stacks) -> String {
    stacks.iter().map(|(stack, count)| format!("{} {count}\n", stack.join(";"))).collect()
}
