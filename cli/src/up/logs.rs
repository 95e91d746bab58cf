//! The lines of all processes, each behind its process's name.
//!
//! A task a stream cuts what it reads into lines of bounded length and hands them to one thread that prints. The way
//! there is bounded too: a process that floods is slowed down for a moment, and past that its lines are dropped and
//! counted. Neither a flood nor a terminal that has stopped ever holds up the supervisor.

mod lines;
mod print;

use std::{
    collections::VecDeque,
    io::IsTerminal,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use self::{lines::LineSplitter, print::Message};

/// Lines that wait to be printed.
const QUEUE: usize = 4_096;
/// For so long a flood is held back before lines are dropped.
const PATIENCE: Duration = Duration::from_millis(200);
/// A line that was begun is printed without its end after so long.
const PARTIAL_AFTER: Duration = Duration::from_millis(500);
/// Lines of a process that are kept to explain its death.
const KEPT: usize = 12;
/// For the printing of what waits, at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Where the lines of all processes go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs {
    queue: mpsc::Sender<Message>,
    sources: Arc<[Source]>,
    is_held: Arc<AtomicBool>,
}

struct Source {
    name: String,
    last: Mutex<VecDeque<String>>,
    dropped: AtomicU64,
}

impl Logs {
    /// Starts the thread that prints. What processes say is held back until [`Self::release`].
    pub(crate) fn start(names: Vec<String>) -> Self {
        let colours =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let (queue, messages) = mpsc::channel(QUEUE);
        let printer = print::Printer::new(&names, colours);
        std::thread::spawn(move || printer.run(messages, std::io::stdout()));
        let source = |name| Source { name, last: Mutex::default(), dropped: AtomicU64::new(0) };
        Self { queue, sources: names.into_iter().map(source).collect(), is_held: Arc::new(AtomicBool::new(true)) }
    }

    /// Prints a line of weft's own.
    pub(crate) async fn say(&self, text: impl Into<String>) {
        let _ = timeout(PATIENCE, self.queue.send(Message::Say(text.into()))).await;
    }

    /// Prints what was held back, and from now on everything as it comes.
    pub(crate) async fn release(&self) {
        self.is_held.store(false, Relaxed);
        let _ = timeout(FLUSH_LIMIT, self.queue.send(Message::Release)).await;
    }

    /// Whether what processes say is still held back.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Relaxed)
    }

    /// Waits until everything so far was printed, but not for ever.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        let flush = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = is_done.await;
            }
        };
        let _ = timeout(FLUSH_LIMIT, flush).await;
    }

    /// The last lines of a process.
    pub(crate) fn last_lines(&self, name: &str) -> Vec<String> {
        let source = self.sources.iter().find(|source| source.name == name);
        source.map_or_else(Vec::new, |source| source.kept().iter().cloned().collect())
    }

    /// Reads a stream of a process to its end.
    pub(crate) fn follow(&self, name: &str, stream: impl AsyncRead + Unpin + Send + 'static) -> Option<JoinHandle<()>> {
        let index = self.sources.iter().position(|source| source.name == name)?;
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
        let source = &self.sources[index];
        {
            let mut last = source.kept();
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back(line.clone());
        }
        // Once lines are being dropped, only a queue with room ends that: waiting for each would slow the reader.
        let patience = if source.dropped.load(Relaxed) > 0 { Duration::ZERO } else { PATIENCE };
        let permit = match self.queue.try_reserve() {
            Ok(permit) => Some(permit),
            Err(_) if patience.is_zero() => None,
            Err(_) => timeout(patience, self.queue.reserve()).await.ok().and_then(Result::ok),
        };
        match permit {
            Some(permit) => {
                let dropped = source.dropped.swap(0, Relaxed);
                permit.send(Message::Line { source: index, line, dropped });
            }
            None => {
                source.dropped.fetch_add(1, Relaxed);
            }
        }
    }
}

impl Source {
    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.last.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Logs whose printer is the test itself.
    fn unprinted(queue: usize) -> (Logs, mpsc::Receiver<Message>) {
        let (queue, messages) = mpsc::channel(queue);
        let source = Source { name: "users-1".to_owned(), last: Mutex::default(), dropped: AtomicU64::new(0) };
        (Logs { queue, sources: [source].into(), is_held: Arc::default() }, messages)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_that_nobody_prints_is_read_to_its_end_and_counted() {
        let (logs, mut messages) = unprinted(10);
        let (mut child, stream) = tokio::io::duplex(1_024);
        let reader = logs.follow("users-1", stream).unwrap();
        for n in 0..1_000 {
            child.write_all(format!("line {n}\n").as_bytes()).await.unwrap();
        }
        drop(child);
        reader.await.unwrap();
        let mut printed = 0;
        while messages.try_recv().is_ok() {
            printed += 1;
        }
        assert_eq!(printed, 10);
        assert_eq!(logs.sources[0].dropped.load(Relaxed), 990);
        let last = logs.last_lines("users-1");
        assert_eq!((last.len(), last.last().map(String::as_str)), (KEPT, Some("line 999")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_its_end_is_printed_after_a_while() {
        let (logs, mut messages) = unprinted(10);
        let (mut child, stream) = tokio::io::duplex(1_024);
        let _reader = logs.follow("users-1", stream).unwrap();
        child.write_all(b"password: ").await.unwrap();
        let Some(Message::Line { line, .. }) = messages.recv().await else { panic!("a line") };
        assert_eq!(line, "password: ");
    }
}
