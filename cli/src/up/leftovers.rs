//! Processes that were left behind when `weft up` was killed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::bail;
use rustix::process::Signal;

use super::{
    process::{self, ProcessId},
    run_file::Run,
};

/// How long they may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(12);
/// How long they may take to be gone after SIGKILL.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(20);

/// Ends every process of a run whose `weft up` is gone; returns how many there were.
///
/// A process belongs to the run if it has a number and a start time of the run file, or the run's id in its
/// environment. The number alone is not enough: another process may have it by now.
///
/// # Errors
/// Some survive even a kill.
pub(crate) fn end_processes(run: &Run) -> anyhow::Result<usize> {
    let found = living(run);
    for process in &found {
        process::signal(process.pid, Signal::TERM);
    }
    if !until(STOP_LIMIT, || living(run).is_empty()) {
        for process in living(run) {
            process::signal(process.pid, Signal::KILL);
        }
        if !until(KILL_LIMIT, || living(run).is_empty()) {
            let left: Vec<String> = living(run).iter().map(|process| process.pid.to_string()).collect();
            bail!("these processes do not end: {}", left.join(", "));
        }
    }
    Ok(found.len())
}

fn living(run: &Run) -> Vec<ProcessId> {
    let mut seen = BTreeSet::new();
    let recorded = run.processes.values().copied().filter(|process| process.is_alive());
    recorded.chain(process::of_run(&run.run_id)).filter(|process| seen.insert(process.pid)).collect()
}

/// Waits until it is so; false if it is not so within the limit.
pub(crate) fn until(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command};

    use super::*;

    fn run_of(run_id: &str, processes: BTreeMap<String, ProcessId>) -> Run {
        Run {
            run_id: run_id.to_owned(),
            mesh_file: "mesh.yaml".into(),
            up: ProcessId { pid: 1, start_time: 0 },
            outbound_url: String::new(),
            dashboard_url: String::new(),
            control_url: String::new(),
            otlp: Vec::new(),
            replicas: BTreeMap::new(),
            forwards: BTreeMap::new(),
            processes,
        }
    }

    #[test]
    fn only_the_processes_of_a_killed_run_are_ended() {
        let run_id = format!("test-{:016x}", fastrand::u64(..));
        let sleeper =
            |marker: &str| Command::new("sleep").arg("600").env(process::RUN_VARIABLE, marker).spawn().unwrap();
        let (mut ours, mut foreign) = (sleeper(&run_id), sleeper("another run"));
        // The foreign process now has a number that the run file knows, but it started at another time.
        let recycled = ProcessId { pid: foreign.id(), start_time: 1 };
        // A child counts as ended before it is waited for, so the test can wait for it afterwards.
        let run = run_of(&run_id, BTreeMap::from([("users-1".to_owned(), recycled)]));
        // Just after exec the kernel may not show a process's environment yet.
        assert!(until(Duration::from_secs(10), || living(&run).len() == 1), "{:?}", living(&run));
        assert_eq!(end_processes(&run).unwrap(), 1);
        assert!(!ours.wait().unwrap().success());
        assert!(foreign.try_wait().unwrap().is_none(), "the foreign process still runs");
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}
