//! Processes as the system shows them: their groups, when they started, which ports they listen on. What only Linux
//! shows is left out on other systems.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// The variable with the run's id. It is set in every process of a run, so that what a service leaves behind is
/// recognized.
pub(crate) const RUN_VARIABLE: &str = "WEFT_RUN_ID";

/// A process, which cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// In clock ticks since the machine started (field 22 of proc_pid_stat(5)); 0 if the system does not show it.
    pub(crate) start_time: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, start_time: start_time(pid).unwrap_or(0) }
    }

    /// Whether this same process still runs.
    pub(crate) fn is_alive(self) -> bool {
        self.start_time != 0 && start_time(self.pid) == Some(self.start_time)
    }
}

/// Sends a signal to a process and everything in its group.
pub(crate) fn signal_group(leader: u32, signal: Signal) {
    if let Some(pid) = pid(leader) {
        // With our own children this fails only if no process is left.
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(process: u32, signal: Signal) {
    if let Some(pid) = pid(process) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// How long a killed process may take to end: on a busy machine it has to wait for its turn.
const KILLED_GRACE: Duration = Duration::from_secs(2);

/// Ends what the leader of a group left behind: with SIGTERM first, and with SIGKILL after `grace`.
pub(crate) async fn end_group(leader: u32, grace: Duration) {
    let Some(group) = pid(leader) else { return };
    let is_there = || rustix::process::test_kill_process_group(group).is_ok() && has_living_member(leader);
    for (signal, grace) in [(Signal::TERM, grace), (Signal::KILL, KILLED_GRACE)] {
        if !is_there() {
            return;
        }
        signal_group(leader, signal);
        let until = tokio::time::Instant::now() + grace;
        while is_there() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether a group has more than zombies, which only their parent can remove.
fn has_living_member(leader: u32) -> bool {
    if !std::path::Path::new("/proc/self/stat").exists() {
        return true;
    }
    all()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .any(|stat| parse_stat(&stat).is_some_and(|stat| stat.group == leader && stat.state != 'Z'))
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// Every living process of a run, by the variable in its environment; never this one.
pub(crate) fn of_run(run_id: &str) -> Vec<ProcessId> {
    let marker = format!("{RUN_VARIABLE}={run_id}");
    let is_marked = |pid: u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes()))
    };
    all().filter(|pid| *pid != std::process::id() && is_marked(*pid)).map(ProcessId::of).collect()
}

fn all() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let stat = parse_stat(&stat)?;
    // A zombie has ended; its parent has just not waited for it yet.
    (stat.state != 'Z').then_some(stat.start_time)
}

/// The fields of proc_pid_stat(5) that are needed.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    group: u32,
    start_time: u64,
}

/// The name at the beginning may itself have spaces and brackets in it.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    // These begin with field 3.
    let fields: Vec<&str> = after_name.split(' ').collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: field(3)?.chars().next()?,
        group: field(5)?.parse().ok()?,
        start_time: field(22)?.parse().ok()?,
    })
}

/// Whether this process was started with SIGHUP ignored.
pub(crate) fn ignores_hang_up() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // Signal 1 is bit 0.
    mask & 1 == 1
}

/// `NAME (pid N)` of the process that listens on a TCP port, if the system shows it.
pub(crate) fn listener_on(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| listening_socket(line, port)).collect::<Vec<_>>())
        .collect();
    let has_it = |pid: u32| {
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
        })
    };
    let pid = if inodes.is_empty() { None } else { all().find(|pid| has_it(*pid)) }?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("`{}` (pid {pid})", name.trim()))
}

/// If a line of /proc/net/tcp is a listener on that port: the socket's name among a process's open files.
fn listening_socket(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let is_listening = *fields.get(3)? == "0A";
    let is_it = is_listening && u16::from_str_radix(local_port, 16).ok()? == port;
    let inode = fields.get(9)?;
    is_it.then(|| format!("socket:[{inode}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start_time() {
        let own = ProcessId::of(std::process::id());
        assert!(own.is_alive());
        assert!(!ProcessId { start_time: own.start_time + 1, ..own }.is_alive());
        assert!(!ProcessId { pid: own.pid, start_time: 0 }.is_alive());
    }

    #[test]
    fn the_start_time_is_found_after_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("7 (a) b) {tail}")), Some(Stat { state: 'S', group: 2, start_time: 4711 }));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn a_listener_s_socket_is_found_in_the_kernel_s_table() {
        let line =
            "  3: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 98765 1 0 100 0";
        assert_eq!(listening_socket(line, 15001).as_deref(), Some("socket:[98765]"));
        assert_eq!(listening_socket(line, 15002), None);
        assert_eq!(listening_socket(&line.replace(" 0A ", " 01 "), 15001), None);
    }
}
