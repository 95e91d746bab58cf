//! What `weft up` prints: the lines of all processes, each after its process's name, and its own lines.
//!
//! A task for each stream cuts what it reads into lines of bounded length and puts them into the [`buffers`], from which one
//! thread prints ([`mod@print`]). A process that floods the log is slowed down for a moment; after that, its own lines
//! are dropped and counted. Neither a flood nor a stopped terminal delays the supervisor.

mod buffers;
mod level;
mod lines;
mod live;
mod print;

use std::{
    collections::VecDeque,
    io::IsTerminal,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::timeout,
};

pub(crate) use self::live::{Live, LiveLine, Size, Tone};
use self::{
    buffers::{Buffers, Line},
    lines::LineSplitter,
    print::{Batch, Printer},
};

/// How long a process that floods is slowed down before its lines are dropped.
const PATIENCE: Duration = Duration::from_millis(200);
/// After this time the start of a line is printed, even if the rest has not come.
const PARTIAL_AFTER: Duration = Duration::from_millis(500);
/// Lines of a process that are kept to explain its death.
const KEPT: usize = 12;
/// How long the printing of the remaining lines may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How `weft up` shows what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Lines are redrawn in place.
    pub(crate) is_live: bool,
    pub(crate) has_colours: bool,
    /// Nothing is left out.
    pub(crate) is_verbose: bool,
}

impl Look {
    /// What fits standard output.
    pub(crate) fn of_stdout(is_plain: bool, is_verbose: bool) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let has_colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_live: is_terminal && !is_dumb && !is_plain, has_colours, is_verbose }
    }
}

/// A process whose lines are printed.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    /// It is a part of Weft: its lines below WARN are left out, except with `--verbose`.
    pub(crate) is_own: bool,
}

/// Where the lines of all processes go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs(Arc<Inner>);

struct Inner {
    sources: Vec<Followed>,
    look: Look,
    shared: Arc<Shared>,
}

struct Followed {
    source: Source,
    last: Mutex<VecDeque<String>>,
}

/// What the printing thread shares with the tasks that have something to print.
struct Shared {
    state: Mutex<State>,
    has_work: Condvar,
    has_room: Notify,
    /// Only weft's own lines are printed; those of processes are held back.
    is_held: AtomicBool,
}

struct State {
    buffers: Buffers,
    /// Weft's own index among the sources: the last one.
    own: usize,
    foot: Option<Vec<LiveLine>>,
    flushes: Vec<oneshot::Sender<()>>,
    is_over: bool,
}

impl Logs {
    /// Starts the thread that prints. The lines of processes are held back until [`Self::release`].
    pub(crate) fn start(sources: Vec<Source>, look: Look) -> Self {
        let names: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
        let logs = Self::unprinted(sources, look);
        let shared = Arc::clone(&logs.0.shared);
        std::thread::spawn(move || shared.print(Printer::new(&names, look.has_colours, look.is_live)));
        logs
    }

    fn unprinted(sources: Vec<Source>, look: Look) -> Self {
        let own = sources.len();
        let (buffers, foot, flushes) = (Buffers::new(own + 1), None, Vec::new());
        let shared = Shared {
            state: Mutex::new(State { buffers, own, foot, flushes, is_over: false }),
            has_work: Condvar::new(),
            has_room: Notify::new(),
            is_held: AtomicBool::new(true),
        };
        let followed = |source| Followed { source, last: Mutex::default() };
        Self(Arc::new(Inner { sources: sources.into_iter().map(followed).collect(), look, shared: Arc::new(shared) }))
    }

    /// How things are shown.
    pub(crate) fn look(&self) -> Look {
        self.0.look
    }

    /// Prints one or more lines of weft's own.
    pub(crate) fn say(&self, text: impl Into<String>) {
        self.0.shared.push_own(Line { text: text.into(), is_bare: false });
    }

    /// Prints lines of weft's own, on a terminal without a name before them.
    pub(crate) fn show(&self, text: impl Into<String>) {
        self.0.shared.push_own(Line { text: text.into(), is_bare: true });
    }

    /// Replaces the lines at the bottom of the terminal. They are shown only if lines are redrawn.
    pub(crate) fn set_foot(&self, lines: Vec<LiveLine>) {
        if self.0.look.is_live {
            self.0.shared.change(|state| state.foot = Some(lines));
        }
    }

    /// Prints what was held back, and from now on each line as it comes.
    pub(crate) fn release(&self) {
        self.0.shared.is_held.store(false, Relaxed);
        self.0.shared.change(|_| ());
    }

    /// Whether the lines of processes are still held back.
    pub(crate) fn is_held(&self) -> bool {
        self.0.shared.is_held.load(Relaxed)
    }

    /// Waits until everything so far is printed, for at most [`FLUSH_LIMIT`].
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        self.0.shared.change(|state| state.flushes.push(done));
        let _ = timeout(FLUSH_LIMIT, is_done).await;
    }

    /// The last lines of a process, including those that were not printed.
    pub(crate) fn last_lines(&self, name: &str) -> Vec<String> {
        let followed = self.0.sources.iter().find(|followed| followed.source.name == name);
        followed.map_or_else(Vec::new, |followed| followed.last().iter().cloned().collect())
    }

    /// Reads a stream of a process to its end.
    pub(crate) fn follow(&self, name: &str, stream: impl AsyncRead + Unpin + Send + 'static) -> Option<JoinHandle<()>> {
        let index = self.0.sources.iter().position(|followed| followed.source.name == name)?;
        let logs = self.clone();
        Some(tokio::spawn(async move { logs.read(index, stream).await }))
    }

    async fn read(&self, index: usize, mut stream: impl AsyncRead + Unpin) {
        let mut lines = LineSplitter::default();
        let mut buffer = vec![0; 8 * 1024];
        loop {
            let read = match timeout(PARTIAL_AFTER, stream.read(&mut buffer)).await {
                Ok(Ok(read)) if read > 0 => read,
                Ok(_) => break,
                Err(_) => {
                    if let Some(line) = lines.take_partial() {
                        self.line(index, line).await;
                    }
                    continue;
                }
            };
            for line in lines.push(&buffer[..read]) {
                self.line(index, line).await;
            }
        }
        if let Some(line) = lines.take_partial() {
            self.line(index, line).await;
        }
    }

    async fn line(&self, index: usize, line: String) {
        let followed = &self.0.sources[index];
        {
            let mut last = followed.last();
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back(line.clone());
        }
        if followed.source.is_own && !self.0.look.is_verbose && level::is_below_warn(&line) {
            return;
        }
        let _ = timeout(PATIENCE, self.0.shared.room(index)).await;
        self.0.shared.change(|state| state.buffers.push(index, Line { text: line, is_bare: false }));
    }
}

impl Followed {
    fn last(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The lock is held for a few instructions only, never while something is printed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.has_work.notify_one();
    }

    fn push_own(&self, line: Line) {
        self.change(|state| state.buffers.push(state.own, line));
    }

    /// Waits until a source has room for a line. It does not wait while lines are held back, nor once lines of the
    /// source have been dropped: a wait for each line would slow the process down for good.
    async fn room(&self, source: usize) {
        loop {
            let mut has_room = pin!(self.has_room.notified());
            has_room.as_mut().enable();
            let is_there = {
                let state = self.lock();
                !state.buffers.is_full(source) || state.buffers.has_dropped(source)
            };
            if is_there || self.is_held.load(Relaxed) {
                return;
            }
            has_room.await;
        }
    }

    /// Prints until nobody is left who could have something to print.
    fn print(&self, mut printer: Printer) {
        let mut out = std::io::BufWriter::new(std::io::stdout());
        while let Some(mut batch) = self.next_batch() {
            let flushes = std::mem::take(&mut batch.flushes);
            // An error means that nobody reads any more: the mesh goes on and its lines are lost.
            let _ = printer.print(batch, &mut out);
            self.has_room.notify_waiters();
            for flush in flushes {
                let _ = flush.send(());
            }
        }
    }

    fn next_batch(&self) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            if let Some(batch) = state.take(self.is_held.load(Relaxed)) {
                return Some(batch);
            }
            if state.is_over {
                return None;
            }
            state = self.has_work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// What is to be printed now, if there is anything.
    fn take(&mut self, is_held: bool) -> Option<Batch> {
        let own = self.own;
        let is_taken = |source: usize| !is_held || source == own;
        let has_work = self.buffers.has_any(is_taken) || self.foot.is_some() || !self.flushes.is_empty();
        has_work.then(|| Batch {
            entries: self.buffers.take(is_taken),
            foot: self.foot.take(),
            flushes: std::mem::take(&mut self.flushes),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.change(|state| state.is_over = true);
    }
}

#[cfg(test)]
mod tests;
