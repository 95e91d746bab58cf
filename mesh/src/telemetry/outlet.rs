//! Text for a stream whose reader may stop, such as standard error: whoever has some never waits for the reader.
//!
//! A thread writes what waits. What finds no room is lost and counted, and the thread says so in its place.
//!
//! `tracing-appender` does nearly this. It bounds lines and not bytes, says nothing of what it lost, and when it ends in
//! front of a reader that has stopped, it complains to that very stream and waits for good.

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

/// Room that is kept once a burst is over.
const KEPT_BYTES: usize = 8 * 1024;
/// A stream that somebody made non-blocking (standard error is often shared with the parent) is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

thread_local! {
    /// This thread writes for an outlet.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// See the module. When it is dropped, its thread writes what waits, and ends.
#[derive(Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something waits, or the outlet is gone.
    came: Condvar,
    /// All is written for the moment.
    written: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Texts in `waiting`.
    texts: u64,
    /// Texts that were lost behind those that wait.
    lost: u64,
    is_writing: bool,
    is_closed: bool,
}

impl Outlet {
    /// Starts the thread that writes to `to`. It calls `on_lost` with how many texts found no room; what that pushes is
    /// written where they would have been.
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

    /// Takes a text to be written, as a whole or not at all: false if there is no room ([`limits::LOG_BYTES_WAITING`]).
    pub(super) fn push(&self, text: &[u8]) -> bool {
        let mut state = self.0.lock();
        // The writer's own word on what was lost must not be lost. It has one for each time that it has taken what waits.
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

    /// Waits until everything so far is written, for [`limits::LOG_FLUSH`] at most. Whether it is.
    pub(super) fn flush(&self) -> bool {
        let has_more = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let waited = self.0.written.wait_timeout_while(self.0.lock(), limits::LOG_FLUSH, has_more);
        !waited.unwrap_or_else(|e| e.into_inner()).1.timed_out()
    }

    /// Texts that found no room, or could not be written.
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
    /// Held for a few instructions only, and never while something is written.
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
            // Of a reader that has gone for good only the count tells: each word about it would be one more to be lost.
            if write_all(&mut to, &taken).is_err() {
                self.lost.fetch_add(texts, Relaxed);
            }
            taken.clear();
            taken.shrink_to(KEPT_BYTES);
        }
    }

    /// Waits for something to write, and swaps it with `room`, which is empty. How many texts it is, and how many were lost
    /// behind it; `None` when no more will come.
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

/// As the standard library's, and waits where a stream that does not block has no room.
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

    /// An outlet into a pipe that nobody reads, until it is full.
    fn full() -> (PipeReader, Arc<OnceLock<Outlet>>, usize) {
        let (reader, writer) = pipe().unwrap();
        let outlet = Arc::<OnceLock<Outlet>>::default();
        let says = Arc::clone(&outlet);
        let started = Outlet::start("log", writer, move |lost| {
            // It is lost only after it has been set.
            says.get().unwrap().push(format!("{lost} lost\n").as_bytes());
        });
        outlet.set(started.unwrap()).unwrap();
        let filling = outlet.get().unwrap();
        // More than any pipe takes, so that the thread stands still from here on.
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

    /// Reads up to the end of what is told by `last`.
    fn read_until(reader: &mut PipeReader, last: &str) -> String {
        let (mut text, mut buffer) = (String::new(), vec![0; 64 * 1024]);
        while !text.ends_with(last) {
            let count = reader.read(&mut buffer).unwrap();
            assert!(count > 0, "it ends early");
            text.push_str(str::from_utf8(&buffer[..count]).unwrap());
        }
        text
    }

    #[test]
    fn a_reader_that_stops_holds_up_nobody_and_is_told_what_it_missed() {
        let (mut reader, outlet, taken) = full();
        let outlet = outlet.get().unwrap();
        for _ in 0..99 {
            assert!(!outlet.push(LINE), "it stays full");
        }
        assert_eq!(outlet.lost(), 100);
        let said = read_until(&mut reader, "100 lost\n");
        assert_eq!(said.matches('\n').count(), taken + 1, "and what was taken came before, as a whole");
        assert!(outlet.push(b"goes on\n") && outlet.flush());
        assert_eq!(read_until(&mut reader, "goes on\n"), "goes on\n");
    }

    #[test]
    fn what_is_held_is_bounded_while_nobody_reads() {
        let (_reader, outlet, _) = full();
        let outlet = outlet.get().unwrap();
        outlet.push(&vec![b'x'; limits::LOG_BYTES_WAITING + 1]);
        assert!(outlet.0.lock().waiting.len() <= limits::LOG_BYTES_WAITING);
        assert!(!outlet.flush(), "and the wait for its end is, too");
    }

    #[test]
    fn a_text_longer_than_the_room_is_lost_and_no_other() {
        let (mut reader, writer) = pipe().unwrap();
        let outlet = Outlet::start("log", writer, |_| {}).unwrap();
        assert!(!outlet.push(&vec![b'x'; limits::LOG_BYTES_WAITING + 1]));
        assert!(outlet.push(LINE));
        assert_eq!(read_until(&mut reader, "\n").as_bytes(), LINE);
        assert_eq!(outlet.lost(), 1);
    }

    #[test]
    fn what_waits_is_written_when_it_is_dropped() {
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
    fn a_reader_that_has_gone_is_no_work() {
        let (reader, writer) = pipe().unwrap();
        let outlet = Outlet::start("log", writer, |_| panic!("nobody would read it")).unwrap();
        drop(reader);
        for _ in 0..10 {
            assert!(outlet.push(LINE) && outlet.flush());
        }
        assert_eq!(outlet.lost(), 10);
    }

    #[test]
    fn a_stream_that_does_not_block_is_waited_for() {
        /// Takes three bytes, then none, by turns.
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
