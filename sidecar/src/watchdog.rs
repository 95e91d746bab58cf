//! Sees that each thread of the sidecar makes progress: the workers, and the control side.
//!
//! Each of these threads serves many connections in turns, so one that does not come back from a turn is an outage for
//! all of them, and the process still looks alive from outside. So a task on each thread beats ([`beat`]), and a thread
//! of its own looks at the beats: the watchdog. When they stay away for [`limits::WORKER_STALL`] it logs the thread and
//! what it is at, and the sidecar says that it is not ready and leaves discovery. If the thread goes on, all of that is
//! taken back. If it does not within [`limits::WORKER_HANG`], the process ends with [`HANG_STATUS`].
//!
//! What counts is [`judge`]'s to say: a process that was stopped, or a machine that is busy or stood still, is no fault
//! of a thread.

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

use self::judge::{Judge, TIMES, Times, Verdict};

/// The exit status of a process one of whose threads hangs: `EX_SOFTWARE` of sysexits.h.
pub(crate) const HANG_STATUS: i32 = 70;
/// How often a thread beats: several times between two looks.
const BEAT_INTERVAL: Duration = Duration::from_millis(250);

/// By which a thread shows that it makes progress.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Of the thread, as the log names it.
    name: String,
    beats: AtomicU64,
    step: AtomicU8,
    /// The thread's id in the kernel; 0 until it has begun.
    thread: AtomicI32,
    /// It beats no more, as its work is done.
    is_over: AtomicBool,
}

/// What a thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Others,
    ReadsHttp2,
    WritesHttp2,
    /// A connection with one call at a time.
    Socket,
}

impl Step {
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
            step: AtomicU8::new(Step::Others as u8),
            thread: AtomicI32::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    /// Notes what the thread is at. Costs one store.
    #[inline]
    pub(crate) fn is_at(&self, step: Step) {
        self.step.store(step as u8, Relaxed);
    }

    fn step(&self) -> Step {
        let step = self.step.load(Relaxed);
        Step::ALL.into_iter().find(|known| *known as u8 == step).unwrap_or(Step::Others)
    }
}

/// Of all threads that are watched.
#[derive(Debug)]
pub(crate) struct Pulses(Vec<Arc<Pulse>>);

impl Pulses {
    /// Of the workers and of the control side, which is the last.
    pub(crate) fn new(workers: u8) -> Self {
        let names = (0..workers).map(|index| format!("worker-{index}"));
        Self(names.chain(["the control side".to_owned()]).map(Pulse::new).collect())
    }

    /// Of a worker.
    pub(crate) fn of_worker(&self, index: u8) -> Arc<Pulse> {
        Arc::clone(&self.0[usize::from(index).min(self.0.len() - 1)])
    }

    /// Of the control side.
    pub(crate) fn of_control(&self) -> Arc<Pulse> {
        Arc::clone(&self.0[self.0.len() - 1])
    }
}

/// Has the thread watched that calls this, from now on. It beats where the future runs, which is to be the same thread.
/// When that is dropped the thread is no longer watched.
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

/// Starts the watchdog's thread, which lives as long as the process and says whether a thread is stalled.
///
/// # Errors
/// The system has no thread left.
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
            // First of all: nothing that follows may fail to come.
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

/// Logs the news on a thread of its own: what a thread that hangs holds may be needed to log, and the watchdog must not
/// wait for it.
fn say(pulse: &Arc<Pulse>, news: News) {
    let name = pulse.name.clone();
    let state = || format!("{}; {}", pulse.step().text(), task::describe(pulse.thread.load(Relaxed)));
    let line: Box<dyn FnOnce() + Send> = match news {
        News::Stalled => {
            let state = state();
            Box::new(move || {
                let limit = limits::WORKER_STALL;
                tracing::error!(
                    state,
                    "{name} has made no progress for {limit:?}: the sidecar is not ready, and leaves discovery, until it \
                     goes on"
                );
            })
        }
        News::GoesOn => Box::new(move || tracing::warn!("{name} makes progress again")),
        News::Hangs => {
            let state = state();
            Box::new(move || {
                let limit = limits::WORKER_HANG;
                tracing::error!(state, "{name} has made no progress for {limit:?}: the process ends ({HANG_STATUS})");
            })
        }
    };
    let (done, said) = std::sync::mpsc::channel();
    let spawned = thread::Builder::new().name("watchdog-log".into()).spawn(move || {
        line();
        let _ = done.send(());
    });
    if spawned.is_ok() {
        // Nearly always at once. It matters only before the process ends.
        let _ = said.recv_timeout(LOG_TIME);
    }
}

/// For a line to be written.
const LOG_TIME: Duration = Duration::from_secs(1);

/// What becomes of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Stalled,
    GoesOn,
    Hangs,
}

/// Looks at each thread from time to time, and tells `on` what becomes of it, until that says to end.
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
                Verdict::Same => continue,
                Verdict::Stalls => News::Stalled,
                Verdict::GoesOn => News::GoesOn,
                Verdict::Hangs => News::Hangs,
            };
            if on(pulse, news).is_break() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
