//! Judges whether a thread makes progress, by what each check finds.
//!
//! A thread that does not beat is at fault only for the time in which it could have: while it had a CPU, or waited for
//! something other than a CPU. So it does not matter how long a busy machine makes it wait for its turn. A check counts
//! for no more than the time between two checks. So the check after the whole process was stopped (SIGSTOP) or the
//! machine was suspended counts as any other, and by the next check the thread has beaten.

use std::time::Duration;

use weft_mesh::limits;

/// How often the watchdog checks, and after how long without a beat a thread stalls or hangs.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) look: Duration,
    pub(super) stall: Duration,
    pub(super) hang: Duration,
}

pub(super) const TIMES: Times =
    Times { look: Duration::from_secs(1), stall: limits::WORKER_STALL, hang: limits::WORKER_HANG };

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// It runs, or waits for a CPU; with the CPU time that it has had so far.
    Runs(Duration),
    /// It waits for something else: a lock, a file, a timer.
    Waits,
    /// It was stopped by a signal or a debugger.
    IsStopped,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing has changed.
    Same,
    /// It has made no progress for too long.
    Stalls,
    /// It makes progress again.
    GoesOn,
    /// It has made no progress for so long that it is given up.
    Hangs,
}

/// The state of one thread.
pub(super) struct Judge {
    times: Times,
    beats: u64,
    /// Its CPU time at the last check without a beat; `None` before the first.
    cpu: Option<Duration>,
    /// How long it could have beaten and did not.
    silent: Duration,
    is_stalled: bool,
}

impl Judge {
    pub(super) fn new(times: Times) -> Self {
        Self { times, beats: 0, cpu: None, silent: Duration::ZERO, is_stalled: false }
    }

    /// The thread is fine, or must not be judged.
    pub(super) fn passes(&mut self) -> Change {
        (self.cpu, self.silent) = (None, Duration::ZERO);
        if std::mem::take(&mut self.is_stalled) { Change::GoesOn } else { Change::Same }
    }

    /// Checks a thread that has beaten `beats` times. Asks for its activity only if that number has not changed.
    pub(super) fn look(&mut self, beats: u64, activity: impl FnOnce() -> Activity) -> Change {
        if beats != self.beats {
            self.beats = beats;
            return self.passes();
        }
        self.silent += match activity() {
            Activity::Runs(cpu) => {
                let before = self.cpu.replace(cpu).unwrap_or(cpu);
                cpu.saturating_sub(before).min(self.times.look)
            }
            Activity::Waits => self.times.look,
            Activity::IsStopped => Duration::ZERO,
        };
        if self.silent >= self.times.hang {
            return Change::Hangs;
        }
        if self.silent >= self.times.stall && !self.is_stalled {
            self.is_stalled = true;
            return Change::Stalls;
        }
        Change::Same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks a thread that does not beat, and returns the checks that found a change.
    fn looks(judge: &mut Judge, activities: impl IntoIterator<Item = Activity>) -> Vec<(usize, Change)> {
        let changes = activities.into_iter().map(|activity| judge.look(0, || activity));
        changes.enumerate().filter(|(_, change)| *change != Change::Same).collect()
    }

    /// A thread that gets this much CPU time each second.
    fn runs(a_second: Duration) -> impl Iterator<Item = Activity> {
        (1..).map(move |look| Activity::Runs(a_second * look))
    }

    #[test]
    fn a_thread_that_spins_stalls_and_then_hangs() {
        let changes = looks(&mut Judge::new(TIMES), runs(SECOND).take(31));
        // The first check does not know how long the thread has been running.
        assert_eq!(changes, [(5, Change::Stalls), (30, Change::Hangs)]);
    }

    #[test]
    fn a_thread_that_is_blocked_stalls_and_then_hangs() {
        let changes = looks(&mut Judge::new(TIMES), [Activity::Waits; 30]);
        assert_eq!(changes, [(4, Change::Stalls), (29, Change::Hangs)]);
    }

    #[test]
    fn a_thread_that_is_given_no_cpu_is_not_at_fault() {
        assert_eq!(looks(&mut Judge::new(TIMES), runs(Duration::ZERO).take(1_000)), []);
        // A tenth of a CPU: ten times as long.
        let changes = looks(&mut Judge::new(TIMES), runs(SECOND / 10).take(60));
        assert_eq!(changes, [(50, Change::Stalls)]);
    }

    /// The watchdog was stopped as long as the thread, and checks it before its next beat.
    #[test]
    fn a_process_that_was_stopped_is_not_at_fault() {
        let mut judge = Judge::new(TIMES);
        for beats in 1..100 {
            assert_eq!(judge.look(beats, || Activity::Waits), Change::Same);
            let hours_of_cpu = Activity::Runs(Duration::from_secs(7_200 * beats));
            assert_eq!(judge.look(beats, || hours_of_cpu), Change::Same);
            assert_eq!(judge.look(beats, || Activity::Waits), Change::Same);
        }
        assert_eq!(looks(&mut Judge::new(TIMES), [Activity::IsStopped; 1_000]), []);
    }

    #[test]
    fn a_thread_that_goes_on_is_fine_again() {
        let mut judge = Judge::new(TIMES);
        assert_eq!(looks(&mut judge, [Activity::Waits; 20]), [(4, Change::Stalls)]);
        assert_eq!(judge.look(1, || Activity::Waits), Change::GoesOn);
        let again: Vec<_> = (0..5).map(|_| judge.look(1, || Activity::Waits)).collect();
        assert_eq!(again, [Change::Same, Change::Same, Change::Same, Change::Same, Change::Stalls]);
        assert_eq!(judge.passes(), Change::GoesOn);
        assert_eq!(judge.passes(), Change::Same);
    }
}
