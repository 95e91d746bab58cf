//! A child process, with its CPU time and memory as the kernel reports them.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

/// How long a child may take to print a line, beyond the time of its task.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a program may take from its start until it is ready.
const START: Duration = Duration::from_secs(30);

/// A child that is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    pid: u32,
    /// The file for its output.
    log: Option<PathBuf>,
}

impl Process {
    /// Starts `program`, with its output going to `log`.
    pub(crate) fn start(program: &Path, args: impl IntoIterator<Item: AsRef<OsStr>>, log: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Settings in the environment that are meant for another mesh.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WEFT_")) {
            command.env_remove(name);
        }
        Ok(Self { log: Some(log.to_owned()), ..Self::spawn(command)? })
    }

    fn spawn(mut command: Command) -> Result<Self> {
        // In a process group of its own: Ctrl-C reaches only the parent, which then kills its children.
        let child =
            command.process_group(0).kill_on_drop(true).spawn().with_context(|| format!("can't start {command:?}"))?;
        let pid = child.id().context("a child ended at once")?;
        Ok(Self { child, pid, log: None })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Polls every millisecond until the process is ready. An error contains the last lines of its output.
    pub(crate) async fn until_ready(&mut self, is_ready: impl AsyncFn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_ready().await {
            let end = self.child.try_wait()?;
            if end.is_some() || start.elapsed() > START {
                let said = self.log.as_ref().map(fs::read_to_string).transpose()?.unwrap_or_default();
                let mut last: Vec<_> = said.lines().rev().take(10).collect();
                last.reverse();
                let what = end.map_or(format!("not ready after {START:?}"), |status| format!("it ended with {status}"));
                bail!("{what}; it said last:\n{}", last.join("\n"));
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Pins the process to one CPU. Does not change further threads that it has already.
    pub(crate) fn keep_to_cpu(&self, cpu: usize) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let mut one = rustix::thread::CpuSet::new();
        one.set(cpu);
        Ok(rustix::thread::sched_setaffinity(pid, &one)?)
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the process and waits until it has gone.
    pub(crate) async fn kill(mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill().await;
    }

    /// The CPU time of each thread so far.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::read(self.pid)
    }

    /// Resident memory now, in bytes.
    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory that it ever had, in bytes.
    pub(crate) fn peak_rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        parse_status_bytes(&status, field).with_context(|| format!("no {field} of process {}", self.pid))
    }
}

fn parse_status_bytes(status: &str, field: &str) -> Option<u64> {
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(field))?.trim().strip_suffix(" kB")?;
    kibibytes.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// CPU time of a process by thread, to the nanosecond. (`/proc/PID/stat` counts in ticks of 10 ms.)
pub(crate) struct Cpu(HashMap<u32, u64>);

impl Cpu {
    fn read(pid: u32) -> Result<Self> {
        let mut threads = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            // A thread may end between the listing and the reading.
            let Ok(line) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
            let nanos = line.split(' ').next().context("an empty schedstat")?.parse()?;
            threads.insert(entry.file_name().to_string_lossy().parse()?, nanos);
        }
        ensure!(!threads.is_empty(), "process {pid} has gone, or the kernel gives no schedstat");
        Ok(Self(threads))
    }

    /// CPU time from `earlier` to this reading. Threads that have ended in between are not counted.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let nanos = self.0.iter().map(|(id, now)| now.saturating_sub(earlier.0.get(id).copied().unwrap_or(0)));
        Duration::from_nanos(nanos.sum())
    }
}

/// A child that runs this executable, and reports to its parent line by line.
pub(crate) struct Role {
    /// The process. It keeps the child's stdin open: when stdin ends, the child ends.
    pub(crate) process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Role {
    /// Starts `weft-bench ARGS` and waits for its line `ready WHAT`. Returns `WHAT`. Waits for `at_most` and
    /// [`PATIENCE`].
    pub(crate) async fn start(
        args: impl IntoIterator<Item: AsRef<OsStr>>,
        at_most: Duration,
    ) -> Result<(Self, String)> {
        // Not by its path: a build may replace the file while it runs.
        let mut command = Command::new("/proc/self/exe");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command)?;
        let stdout = process.child.stdout.take().context("no stdout")?;
        let mut role = Self { process, lines: BufReader::new(stdout).lines() };
        let line = role.line(at_most).await?;
        match line.strip_prefix("ready ") {
            Some(what) => Ok((role, what.to_owned())),
            None => bail!("{line}"),
        }
    }

    /// Sends the child an empty line, which starts its measurement.
    pub(crate) async fn go(&mut self) -> Result<()> {
        let stdin = self.process.child.stdin.as_mut().context("no stdin")?;
        Ok(stdin.write_all(b"\n").await?)
    }

    /// The child's next line.
    pub(crate) async fn line(&mut self, at_most: Duration) -> Result<String> {
        let line = timeout(at_most + PATIENCE, self.lines.next_line()).await.context("a child prints nothing")??;
        line.context("a child has ended early")
    }
}

/// Raises the limit of open files for this process and its children to the hard limit: each connection needs one.
pub(crate) fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("can't raise the limit of open files")
}

/// How many open files a process may have.
pub(crate) fn file_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Ends this process when its parent, which holds the other end of stdin, has gone.
pub(crate) fn exit_with_parent() {
    std::thread::spawn(|| {
        // An error means the same as the end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status_bytes(status, "VmRSS:"), Some(1024 * 1024));
        assert_eq!(parse_status_bytes(status, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(parse_status_bytes(status, "VmSwap:"), None);
    }

    #[test]
    fn cpu_time_counts_new_threads_from_zero() {
        let earlier = Cpu(HashMap::from([(1, 100), (2, 50)]));
        let later = Cpu(HashMap::from([(1, 150), (3, 7)]));
        assert_eq!(later.since(&earlier), Duration::from_nanos(57));
    }
}
