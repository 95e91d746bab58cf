use std::sync::mpsc::{self, Receiver, Sender};

use super::*;

/// A generous limit, for slow machines.
const SOON: Duration = Duration::from_secs(60);
/// Several beats fit into the time after which a thread stalls.
const TIMES: Times =
    Times { look: Duration::from_millis(100), stall: Duration::from_secs(1), hang: Duration::from_secs(3_600) };
const HANGS: Times = Times { hang: Duration::from_secs(2), ..TIMES };

/// Starts a thread with a runtime that beats. It runs the work that comes through the channel, between two turns of its
/// tasks.
fn fake_worker(pulse: &Arc<Pulse>) -> Sender<Box<dyn FnOnce() + Send>> {
    let (todo, work) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
    let pulse = Arc::clone(pulse);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        runtime.expect("a runtime").block_on(async {
            tokio::task::spawn_local(beat(pulse));
            loop {
                match work.try_recv() {
                    Ok(work) => work(),
                    Err(mpsc::TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
        });
    });
    todo
}

/// Work that waits until the other end is dropped.
fn blocks_until(end: Receiver<()>) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        let _ = end.recv();
    })
}

/// Watches two threads, and sends each change with the thread's name.
fn watch_two(times: Times) -> (Vec<Arc<Pulse>>, Receiver<(String, News)>) {
    let pulses: Vec<_> = ["first", "second"].map(|name| Pulse::new(name.into())).into();
    let (tell, news) = mpsc::channel();
    let watched = pulses.clone();
    thread::spawn(move || {
        watch(&watched, times, |pulse, news| match tell.send((pulse.name.clone(), news)) {
            Ok(()) if news != News::Hangs => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
    });
    (pulses, news)
}

#[test]
fn a_worker_that_spins_or_is_blocked_is_noticed_until_it_goes_on() {
    let (pulses, news) = watch_two(TIMES);
    let workers: Vec<_> = pulses.iter().map(fake_worker).collect();
    let is_enough = Arc::new(AtomicBool::new(false));
    let (release, blocked) = mpsc::channel::<()>();
    let spin = Arc::clone(&is_enough);
    let spinning = move || {
        while !spin.load(Relaxed) {
            std::hint::spin_loop();
        }
    };
    workers[0].send(Box::new(spinning)).expect("it runs");
    assert_eq!(news.recv_timeout(SOON).expect("it is noticed"), ("first".into(), News::Stalled));
    workers[1].send(blocks_until(blocked)).expect("it runs");
    assert_eq!(news.recv_timeout(SOON).expect("it is noticed"), ("second".into(), News::Stalled));
    is_enough.store(true, Relaxed);
    assert_eq!(news.recv_timeout(SOON).expect("it goes on"), ("first".into(), News::GoesOn));
    drop(release);
    assert_eq!(news.recv_timeout(SOON).expect("it goes on"), ("second".into(), News::GoesOn));
}

#[test]
fn a_worker_that_never_goes_on_hangs_and_one_whose_work_is_done_does_not() {
    let (pulses, news) = watch_two(HANGS);
    let workers: Vec<_> = pulses.iter().map(fake_worker).collect();
    let (_never, blocked) = mpsc::channel::<()>();
    workers[1].send(blocks_until(blocked)).expect("it runs");
    // The first has no more work: its runtime ends, and its beats with it.
    drop(workers);
    assert_eq!(news.recv_timeout(SOON).expect("it is noticed"), ("second".into(), News::Stalled));
    assert_eq!(news.recv_timeout(SOON).expect("it is noticed"), ("second".into(), News::Hangs));
}

#[test]
fn a_thread_that_has_not_started_is_not_judged() {
    let (pulses, news) = watch_two(HANGS);
    let second = fake_worker(&pulses[1]);
    let (_never, blocked) = mpsc::channel::<()>();
    second.send(blocks_until(blocked)).expect("it runs");
    let told: Vec<_> = std::iter::from_fn(|| news.recv_timeout(SOON).ok()).collect();
    assert!(told.iter().all(|(name, _)| name == "second"), "{told:?}");
    assert_eq!(told.last(), Some(&("second".into(), News::Hangs)));
}

#[test]
fn each_step_has_a_text_of_its_own() {
    let pulse = Pulse::new("worker-0".into());
    let mut texts = Vec::new();
    for work in Work::ALL {
        pulse.is_at(work);
        assert_eq!(pulse.work(), work);
        texts.push(work.text());
    }
    texts.dedup();
    assert_eq!(texts.len(), Work::ALL.len());
}
