//! Writes text to a stream whose reader may stop, such as standard error. The callers never wait for the reader.
//!
//! A thread writes the waiting text. Text that finds no room is lost and counted, and the thread reports that in its
//! place.
//!
//! `tracing-appender` is similar, but it limits lines and not bytes, does not report what it lost, and if it ends while
//! the reader has stopped, it writes an error to the same stream and waits for ever.

use std::{
    cell::Cell,
    io::{self, ErrorKind, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::limits;

/// The buffer that is kept after a burst.
const KEPT_BYTES: usize = 8 * 1024;
/// The pause before another try to write to a stream that another process has made non-blocking (standard error is
/// often shared with the parent).
const RETRY_PAUSE: Duration = Duration::from_millis(20);

thread_local! {
    /// Whether this thread writes for an outlet.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// See the module. When it is dropped, its thread writes the waiting text and ends.
#[derive(Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Text waits, or the outlet is gone.
    came: Condvar,
    /// All text is written for now.
    written: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The number of texts in `waiting`.
    texts: u64,
    /// The number of texts that were lost after those in `waiting`.
    lost: u64,
    is_writing: bool,
    is_closed: bool,
}

impl Outlet {
    /// Starts the thread that writes to `to`. It calls `on_lost` with the number of texts that found no room; text that
    /// `on_lost` pushes is written in their place.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(
        name: &str,
        to: impl Write + Send + 'static,
        on_lost: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writes = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || writes.write_to(to, on_lost))?;
        Ok(Self(shared))
    }

    /// Takes a text to write, completely or not at all. False if there is no room ([`limits::LOG_BYTES_WAITING`]).
    pub(super) fn push(&self, text: &[u8]) -> bool {
        let mut state = self.0.lock();
        // The writer's own report of lost texts must not be lost. There is one for each time that it takes the waiting
        // text.
        if state.waiting.len() + text.len() > limits::LOG_BYTES_WAITING && !IS_WRITER.get() {
            state.lost += 1;
            drop(state);
            self.0.lost.fetch_add(1, Relaxed);
            return false;
        }
        state.waiting.extend_from_slice(text);
        state.texts += 1;
        drop(state);
        self.0.came.notify_one();
        true
    }

    /// Waits until everything so far is written, at most [`limits::LOG_FLUSH`]. False if that was not enough.
    pub(super) fn flush(&self) -> bool {
        let has_more = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let waited = self.0.written.wait_timeout_while(self.0.lock(), limits::LOG_FLUSH, has_more);
        !waited.unwrap_or_else(|e| e.into_inner()).1.timed_out()
    }

    /// The number of texts that found no room, or could not be written.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.came.notify_one();
    }
}

impl Shared {
    /// The lock is held for a few instructions only, and never during a write.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn write_to(&self, mut to: impl Write, on_lost: impl Fn(u64)) {
        IS_WRITER.set(true);
        let mut taken = Vec::new();
        while let Some((texts, lost)) = self.take(&mut taken) {
            if lost > 0 {
                on_lost(lost);
            }
            // If the reader is gone, only the count shows it: a message about it would be lost as well.
            if write_all(&mut to, &taken).is_err() {
                self.lost.fetch_add(texts, Relaxed);
            }
            taken.clear();
            taken.shrink_to(KEPT_BYTES);
        }
    }

    /// Waits for text to write, and swaps it with `room`, which is empty. Returns how many texts it is, and how many
    /// were lost after it; `None` if no more will come.
    fn take(&self, room: &mut Vec<u8>) -> Option<(u64, u64)> {
        let mut state = self.lock();
        state.is_writing = false;
        while state.waiting.is_empty() {
            self.written.notify_all();
            if state.is_closed {
                return None;
            }
            state = self.came.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        state.is_writing = true;
        mem::swap(&mut state.waiting, room);
        Some((mem::take(&mut state.texts), mem::take(&mut state.lost)))
    }
}

/// Like the standard library's, but waits if a non-blocking stream has no room.
fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(e) => return Err(e),
        }
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, Read, pipe},
        sync::OnceLock,
    };

    use super::*;

    const LINE: &[u8] = b"a line of the log that is about as long as most of them are, or a little longer\n";

    /// An outlet into a pipe that nobody reads, filled up.
    fn full() -> (PipeReader, Arc<OnceLock<Outlet>>, usize) {
        let (reader, writer) = pipe().unwrap();
        let outlet = Arc::<OnceLock<Outlet>>::default();
        let says = Arc::clone(&outlet);
        let started = Outlet::start("log", writer, move |lost| {
            // Texts are lost only after the cell was set.
            says.get().unwrap().push(format!("{lost} lost\n").as_bytes());
        });
        outlet.set(started.unwrap()).unwrap();
        let filling = outlet.get().unwrap();
        // More than any pipe holds, so that the thread blocks from here on.
        filling.push(&LINE.repeat(2_000));
        let stands_still = || {
            let state = filling.0.lock();
            state.is_writing && state.waiting.is_empty()
        };
        while !stands_still() {
            thread::yield_now();
        }
        let mut taken = 2_000;
        while filling.push(LINE) {
            taken += 1;
        }
        (reader, outlet, taken)
    }

    /// Reads until the text ends with `last`.
    fn read_until(reader: &mut PipeReader, last: &str) -> String {
        let (mut text, mut buffer) = (String::new(), vec![0; 64 * 1024]);
        while !text.ends_with(last) {
            let count = reader.read(&mut buffer).unwrap();
            assert!(count > 0, "the stream ended early");
            text.push_str(str::from_utf8(&buffer[..count]).unwrap());
        }
        text
    }

    #[test]
    fn a_stopped_reader_blocks_nobody_and_learns_what_it_missed() {
        let (mut reader, outlet, taken) = full();
        let outlet = outlet.get().unwrap();
        for _ in 0..99 {
            assert!(!outlet.push(LINE), "the outlet stays full");
        }
        assert_eq!(outlet.lost(), 100);
        let said = read_until(&mut reader, "100 lost\n");
        assert_eq!(said.matches('\n').count(), taken + 1, "all texts that were taken came before, complete");
        assert!(outlet.push(b"goes on\n") && outlet.flush());
        assert_eq!(read_until(&mut reader, "goes on\n"), "goes on\n");
    }

    #[test]
    fn memory_is_bounded_while_nobody_reads() {
        let (_reader, outlet, _) = full();
        let outlet = outlet.get().unwrap();
        outlet.push(&vec![b'x'; limits::LOG_BYTES_WAITING + 1]);
        assert!(outlet.0.lock().waiting.len() <= limits::LOG_BYTES_WAITING);
        assert!(!outlet.flush(), "the wait for its end is limited, too");
    }

    #[test]
    fn only_a_text_longer_than_the_room_is_lost() {
        let (mut reader, writer) = pipe().unwrap();
        let outlet = Outlet::start("log", writer, |_| {}).unwrap();
        assert!(!outlet.push(&vec![b'x'; limits::LOG_BYTES_WAITING + 1]));
        assert!(outlet.push(LINE));
        assert_eq!(read_until(&mut reader, "\n").as_bytes(), LINE);
        assert_eq!(outlet.lost(), 1);
    }

    #[test]
    fn waiting_text_is_written_when_the_outlet_is_dropped() {
        let (mut reader, writer) = pipe().unwrap();
        let outlet = Outlet::start("log", writer, |_| {}).unwrap();
        for _ in 0..100 {
            assert!(outlet.push(LINE));
        }
        drop(outlet);
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text, LINE.repeat(100));
    }

    #[test]
    fn a_reader_that_is_gone_causes_no_work() {
        let (reader, writer) = pipe().unwrap();
        let outlet = Outlet::start("log", writer, |_| panic!("nobody would read it")).unwrap();
        drop(reader);
        for _ in 0..10 {
            assert!(outlet.push(LINE) && outlet.flush());
        }
        assert_eq!(outlet.lost(), 10);
    }

    #[test]
    fn a_non_blocking_stream_is_waited_for() {
        /// Takes three bytes and then none, in turn.
        struct Slow(Vec<u8>, bool);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if !self.1 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                let count = bytes.len().min(3);
                self.0.extend_from_slice(&bytes[..count]);
                Ok(count)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut slow = Slow(Vec::new(), false);
        write_all(&mut slow, b"a whole line\n").unwrap();
        assert_eq!(slow.0, b"a whole line\n");
    }
}
