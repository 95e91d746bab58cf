//! Watches that each thread of the sidecar makes progress: the workers, and the control side.
//!
//! Each of these threads serves many connections in turns. A thread that does not come back from a turn is an outage
//! for all of them, while the process still looks alive from outside. So a task on each thread beats ([`beat`]), and a
//! separate thread, the watchdog, checks the beats. If a thread does not beat for [`limits::WORKER_STALL`], the
//! watchdog logs the thread and what it is doing, and the sidecar becomes unready and leaves discovery. If the thread
//! goes on, all of that is undone. If it does not within [`limits::WORKER_HANG`], the process ends with
//! [`HANG_STATUS`].
//!
//! [`judge`] decides what counts: a thread is not at fault if the process was stopped, or if the machine is busy or was
//! suspended.

mod judge;
mod task;

use std::{
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use weft_mesh::{limits, telemetry};

use self::judge::{Change, Judge, TIMES, Times};

/// The exit status of a process with a thread that hangs: `EX_SOFTWARE` of sysexits.h.
pub(crate) const HANG_STATUS: i32 = 70;
/// How often a thread beats: several times between two checks.
const BEAT_INTERVAL: Duration = Duration::from_millis(250);

/// Where a thread shows that it makes progress.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// The thread's name in the log.
    name: String,
    beats: AtomicU64,
    work: AtomicU8,
    /// The thread's id in the kernel; 0 until it has started.
    thread: AtomicI32,
    /// It no longer beats, because its work is done.
    is_over: AtomicBool,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Work {
    Others,
    ReadsHttp2,
    WritesHttp2,
    /// A connection with one call at a time.
    Socket,
}

impl Work {
    const ALL: [Self; 4] = [Self::Others, Self::ReadsHttp2, Self::WritesHttp2, Self::Socket];

    fn text(self) -> &'static str {
        match self {
            Self::Others => "between the turns of its HTTP connections",
            Self::ReadsHttp2 => "reading an HTTP/2 connection",
            Self::WritesHttp2 => "writing to an HTTP/2 connection",
            Self::Socket => "in a turn of an HTTP/1.1 or TCP connection",
        }
    }
}

impl Pulse {
    fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            beats: AtomicU64::new(0),
            work: AtomicU8::new(Work::Others as u8),
            thread: AtomicI32::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    /// Notes what the thread is doing. Costs one store.
    #[inline]
    pub(crate) fn is_at(&self, work: Work) {
        self.work.store(work as u8, Relaxed);
    }

    fn work(&self) -> Work {
        let work = self.work.load(Relaxed);
        Work::ALL.into_iter().find(|known| *known as u8 == work).unwrap_or(Work::Others)
    }
}

/// The pulses of all threads that are watched.
#[derive(Debug)]
pub(crate) struct Pulses(Vec<Arc<Pulse>>);

impl Pulses {
    /// Pulses for the workers and the control side, which is last.
    pub(crate) fn new(workers: u8) -> Self {
        let names = (0..workers).map(|index| format!("worker-{index}"));
        Self(names.chain(["the control side".to_owned()]).map(Pulse::new).collect())
    }

    /// A worker's pulse.
    pub(crate) fn of_worker(&self, index: u8) -> Arc<Pulse> {
        Arc::clone(&self.0[usize::from(index).min(self.0.len() - 1)])
    }

    /// The control side's pulse.
    pub(crate) fn of_control(&self) -> Arc<Pulse> {
        Arc::clone(&self.0[self.0.len() - 1])
    }
}

/// Watches the calling thread from now on. The future does the beats, so it must run on the same thread. When it is
/// dropped, the thread is no longer watched.
pub(crate) fn beat(pulse: Arc<Pulse>) -> impl Future<Output = ()> + use<> {
    pulse.thread.store(task::own_id(), Relaxed);
    let beating = Beating(pulse);
    async move {
        let mut interval = interval(BEAT_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            beating.0.beats.fetch_add(1, Relaxed);
        }
    }
}

struct Beating(Arc<Pulse>);

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.is_over.store(true, Relaxed);
    }
}

/// Starts the watchdog's thread, which lives as long as the process and reports whether a thread is stalled.
///
/// # Errors
/// The system can't start another thread.
pub(crate) fn start(pulses: &Pulses, is_stalled: &watch::Sender<bool>) -> io::Result<()> {
    let (pulses, is_stalled) = (pulses.0.clone(), is_stalled.clone());
    thread::Builder::new().name("watchdog".into()).spawn(move || {
        let mut stalled = 0;
        watch(&pulses, TIMES, |thread, news| {
            match news {
                News::Stalled => stalled += 1,
                News::GoesOn => stalled -= 1,
                News::Hangs => {}
            }
            // Before the log line, which may block.
            is_stalled.send_replace(stalled > 0);
            say(thread, news);
            match news {
                News::Hangs => telemetry::exit(HANG_STATUS),
                News::Stalled | News::GoesOn => ControlFlow::Continue(()),
            }
        });
    })?;
    Ok(())
}

/// Logs the news on a separate thread: a thread that hangs may hold a lock that logging needs, and the watchdog must
/// not wait for it.
fn say(pulse: &Arc<Pulse>, news: News) {
    let name = pulse.name.clone();
    let state = || format!("{}; {}", pulse.work().text(), task::describe(pulse.thread.load(Relaxed)));
    let line: Box<dyn FnOnce() + Send> = match news {
        News::Stalled => {
            let state = state();
            Box::new(move || {
                let limit = limits::WORKER_STALL;
                tracing::error!(
                    state,
                    "{name} has made no progress for {limit:?}: the sidecar is unready and leaves discovery until the \
                     thread goes on"
                );
            })
        }
        News::GoesOn => Box::new(move || tracing::warn!("{name} makes progress again")),
        News::Hangs => {
            let state = state();
            Box::new(move || {
                let limit = limits::WORKER_HANG;
                tracing::error!(
                    state,
                    "{name} has made no progress for {limit:?}: the process ends with status {HANG_STATUS}"
                );
            })
        }
    };
    let (done, said) = std::sync::mpsc::channel();
    let spawned = thread::Builder::new().name("watchdog-log".into()).spawn(move || {
        line();
        let _ = done.send(());
    });
    if spawned.is_ok() {
        // Nearly always returns at once. The wait matters only before the process ends.
        let _ = said.recv_timeout(LOG_TIME);
    }
}

/// How long the watchdog waits for a line to be written.
const LOG_TIME: Duration = Duration::from_secs(1);

/// A change in a thread's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Stalled,
    GoesOn,
    Hangs,
}

/// Checks each thread from time to time, and calls `on` with each change until that breaks.
fn watch(pulses: &[Arc<Pulse>], times: Times, mut on: impl FnMut(&Arc<Pulse>, News) -> ControlFlow<()>) {
    let mut judges: Vec<_> = pulses.iter().map(|_| Judge::new(times)).collect();
    loop {
        thread::sleep(times.look);
        for (pulse, judge) in pulses.iter().zip(&mut judges) {
            let thread = pulse.thread.load(Relaxed);
            let verdict = if thread == 0 || pulse.is_over.load(Relaxed) {
                judge.passes()
            } else {
                judge.look(pulse.beats.load(Relaxed), || task::activity(thread))
            };
            let news = match verdict {
                Change::Same => continue,
                Change::Stalls => News::Stalled,
                Change::GoesOn => News::GoesOn,
                Change::Hangs => News::Hangs,
            };
            if on(pulse, news).is_break() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
