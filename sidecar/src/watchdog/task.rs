//! What Linux knows of a thread of this process: `/proc/self/task` (proc(5)). On other systems nothing is known, and a
//! thread that does not beat counts as waiting.

use std::{fs, time::Duration};

use super::judge::Activity;

/// The id of the calling thread; never 0.
#[cfg(target_os = "linux")]
pub(super) fn own_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn own_id() -> i32 {
    1
}

/// What a thread does now.
pub(super) fn activity(thread: i32) -> Activity {
    read(thread, "stat").and_then(|stat| parse(&stat)).map_or(Activity::Waits, |(activity, _)| activity)
}

/// What a thread does now, for the log: as much as this process may read.
pub(super) fn describe(thread: i32) -> String {
    let mut parts = vec![format!("thread {thread}")];
    if let Some((_, state)) = read(thread, "stat").and_then(|stat| parse(&stat)) {
        parts.push(state);
    }
    // The kernel stack is readable only by root, and empty while the thread runs in user space.
    for file in ["syscall", "wchan", "stack"] {
        if let Some(text) = read(thread, file).filter(|text| !matches!(text.trim(), "" | "0")) {
            parts.push(format!("{file}: {}", text.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    parts.join(", ")
}

fn read(thread: i32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/task/{thread}/{file}")).ok()
}

/// The unit of a thread's CPU time, whatever the kernel's own clock rate is (times(2)).
const TICKS_A_SECOND: u64 = 100;

/// The state and the CPU time in a line of `stat`, and a text of both.
fn parse(stat: &str) -> Option<(Activity, String)> {
    // The name, in parentheses, may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    // Fields 14 and 15; the state is the third.
    let mut times = fields.skip(10).take(2).map(|ticks| ticks.parse::<u64>().ok());
    let ticks = times.next()?? + times.next()??;
    let cpu = Duration::from_millis(ticks * 1_000 / TICKS_A_SECOND);
    let (activity, what) = match state {
        "R" => (Activity::Runs(cpu), "runs or waits for a CPU"),
        "T" | "t" => (Activity::IsStopped, "is stopped"),
        _ => (Activity::Waits, "waits"),
    };
    Some((activity, format!("{what} ({state}) after {cpu:?} of CPU time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_parsed() {
        let line = |state| format!("7 (worker) 1) {state} 1 7 7 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 3 0 100 1 2");
        let cpu = Duration::from_secs(3);
        for (state, activity) in
            [("R", Activity::Runs(cpu)), ("S", Activity::Waits), ("D", Activity::Waits), ("T", Activity::IsStopped)]
        {
            assert_eq!(parse(&line(state)).expect("a line").0, activity);
        }
        assert_eq!(parse(""), None);
        assert_eq!(parse("7 (x) R 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_calling_thread_runs() {
        assert!(matches!(activity(own_id()), Activity::Runs(_)));
        let text = describe(own_id());
        assert!(text.contains("runs or waits for a CPU (R)"), "{text}");
    }
}
