//! A child process, and what the kernel says of its CPU time and memory.

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

/// How long a child may take to say something, beyond what it was told to do.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a program may take from its start until it is ready.
const START: Duration = Duration::from_secs(30);

/// A child that is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    pid: u32,
    /// Where what it prints goes to.
    log: Option<PathBuf>,
}

impl Process {
    /// Starts `program` with what it prints going to `log`.
    pub(crate) fn start(program: &Path, args: impl IntoIterator<Item: AsRef<OsStr>>, log: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Settings of the mesh that are meant for another one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WEFT_")) {
            command.env_remove(name);
        }
        Ok(Self { log: Some(log.to_owned()), ..Self::spawn(command)? })
    }

    fn spawn(mut command: Command) -> Result<Self> {
        // A group of its own: Ctrl-C reaches the parent only, which then kills its children.
        let child =
            command.process_group(0).kill_on_drop(true).spawn().with_context(|| format!("can't start {command:?}"))?;
        let pid = child.id().context("a child ended at once")?;
        Ok(Self { child, pid, log: None })
    }

    /// Its number for the kernel.
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Asks every millisecond whether the process is ready, until it is. An error has what it said last.
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

    /// Keeps the process on one CPU of those that it may use, if there are several. Threads that it has already are left
    /// alone.
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
        // An error says that it has ended already.
        let _ = self.child.kill().await;
    }

    /// Time on a CPU so far, of each thread.
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

    /// CPU time from `earlier` to this reading. Threads that have ended in between are missed.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let nanos = self.0.iter().map(|(id, now)| now.saturating_sub(earlier.0.get(id).copied().unwrap_or(0)));
        Duration::from_nanos(nanos.sum())
    }
}

/// A child that is this executable itself, and tells its parent things line by line.
pub(crate) struct Role {
    /// The process, which also keeps the child's stdin open: at its end the child ends.
    pub(crate) process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Role {
    /// Starts `weft-bench ARGS` and waits for its line `ready WHAT`, which is given back; the wait ends after
    /// `at_most` and some patience.
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

    /// Sends the child an empty line: go.
    pub(crate) async fn go(&mut self) -> Result<()> {
        let stdin = self.process.child.stdin.as_mut().context("no stdin")?;
        Ok(stdin.write_all(b"\n").await?)
    }

    /// The child's next line.
    pub(crate) async fn line(&mut self, at_most: Duration) -> Result<String> {
        let line = timeout(at_most + PATIENCE, self.lines.next_line()).await.context("a child says nothing")??;
        line.context("a child has ended early")
    }
}

/// Lets this process and its children have as many open files as the system allows: one for each connection.
pub(crate) fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("the limit of open files can't be raised")
}

/// How many open files a process may have.
pub(crate) fn file_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Ends this process when its parent, who holds the other end of stdin, has gone.
pub(crate) fn exit_with_parent() {
    std::thread::spawn(|| {
        // An error is as good as the end.
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
