use std::sync::atomic::AtomicUsize;

use tokio::{
    task::{LocalSet, spawn_local},
    time::advance,
};

use super::*;

const WINDOW: usize = limits::STREAM_WINDOW_BYTES as usize;

/// The accounts of two workers for the same side, which has `bytes`.
fn accounts(bytes: usize) -> [Rc<Account>; 2] {
    let budget = Budget::new(2 * bytes);
    [(); 2].map(|()| Account::new(&budget.inbound, &Arc::default()))
}

fn is_unread(counted: &Counted, held: usize, has_unsent: bool, driver: &RefCell<Waker>) -> bool {
    counted.reads(|| (held, has_unsent), driver) == Reads::Nothing
}

fn driver() -> RefCell<Waker> {
    RefCell::new(Waker::noop().clone())
}

#[test]
fn workers_report_what_they_hold_in_steps() {
    let [one, other] = accounts(4 * STEP);
    let load = Rc::default();
    let [first, second, third] = [&one, &one, &other].map(|account| Counted::new(account, &load));
    first.set(STEP - 1);
    assert_eq!(one.used(), 0);
    second.set(1);
    assert_eq!(one.used(), STEP);
    third.set(4 * STEP);
    assert_eq!((other.used(), load.bytes()), (5 * STEP, 5 * STEP));
    third.set(3 * STEP);
    drop((first, second, third));
    assert_eq!((one.used(), one.held(), other.held(), load.bytes()), (0, 0, 0, 0));
}

#[test]
fn neither_side_takes_memory_from_the_other() {
    let budget = Budget::new(8 * STEP);
    let [inbound, outbound] = [&budget.inbound, &budget.outbound].map(|part| Account::new(part, &Arc::default()));
    let (peer, own) = (Rc::default(), Load::with_share(Share::WholeSide));
    let held = Counted::new(&inbound, &peer);
    held.set(100 * STEP);
    assert!(!inbound.takes_calls(&peer));
    assert!(outbound.takes_calls(&own), "the local service's own calls");
    held.set(0);
    let held = Counted::new(&outbound, &own);
    held.set(4 * STEP - 1);
    assert!(outbound.takes_calls(&own), "it has all of its side");
    held.set(5 * STEP);
    assert!(!outbound.takes_calls(&own) && inbound.takes_calls(&peer));
}

#[test]
fn a_load_that_holds_its_part_gets_no_calls_and_there_is_room_for_another_load() {
    let [account, _] = accounts(1024 * STEP);
    let mut peers: Vec<(Rc<Load>, Vec<Counted>)> = Vec::new();
    for number in 0..9 {
        let load: Rc<Load> = Rc::default();
        let mut held = Vec::new();
        while account.takes_calls(&load) {
            let one = Counted::new(&account, &load);
            one.set(STEP);
            held.push(one);
        }
        assert!(!held.is_empty(), "the others have all: {}", account.used());
        if number == 0 {
            assert_eq!(load.bytes(), 512 * STEP, "a single load has half");
        }
        peers.push((load, held));
    }
    // Bytes that one load gives back are free for all.
    assert!(!account.takes_calls(&peers[1].0));
    peers[0].1.clear();
    assert!(account.takes_calls(&peers[1].0));
}

#[test]
fn only_connections_of_a_load_that_holds_its_part_are_paused() {
    let [account, _] = accounts(8 * STEP);
    let (greedy, modest): (Rc<Load>, Rc<Load>) = Default::default();
    let (rest, one, other) =
        (Counted::new(&account, &greedy), Counted::new(&account, &greedy), Counted::new(&account, &modest));
    let local = Counted::new(&account, &Load::with_share(Share::OfNobody));
    let driver = driver();
    let is_paused =
        |counted: &Counted, held, has_unsent| counted.reads(|| (held, has_unsent), &driver) == Reads::Nothing;
    assert!(!is_paused(&one, 1, false), "there is room");
    rest.set(4 * STEP);
    assert!(!is_paused(&one, 0, false), "a pause would free nothing");
    for _ in 0..2 {
        assert!(is_paused(&one, 1, false));
        assert_eq!(account.paused.borrow().len(), 1, "woken once");
    }
    other.set(STEP);
    assert!(!is_paused(&other, STEP, false), "another peer's");
    assert!(!is_paused(&local, 100 * STEP, false), "one that several peers share");
    assert!(!is_paused(&one, WINDOW, true), "it needs its peer's window updates");
    assert!(is_paused(&one, 10 * WINDOW, true), "what it holds will most likely be forwarded");
    one.state.is_stuck.set(true);
    assert!(!is_paused(&one, 10 * WINDOW, true), "two sidecars would wait for each other for ever");
    rest.set(6 * STEP);
    assert!(is_paused(&one, WINDOW, true), "but not without bound");
    assert!(account.is_overdrawn(&greedy) && !account.is_overdrawn(&modest));
}

#[test]
fn bytes_are_charged_to_the_load_that_they_wait_for() {
    let [account, _] = accounts(8 * STEP);
    let (slow, shared) = (Rc::default(), Load::with_share(Share::OfNobody));
    let held = Counted::new(&account, &shared);
    held.set(7 * STEP);
    let mut charge = Charge::new(Rc::clone(&slow));
    charge.add(7 * STEP);
    assert!(account.is_overdrawn(&slow) && !account.takes_calls(&slow));
    assert!(account.takes_calls(&Load::default()), "another peer's calls over the same connection");
    charge.take(STEP);
    assert_eq!(slow.bytes(), 6 * STEP);
    drop(charge);
    assert_eq!(slow.bytes(), 0);
    // A connection that carries first one peer's call, then another's.
    let (one, other): (Rc<Load>, Rc<Load>) = Default::default();
    held.belongs_to(&one);
    held.belongs_to(&other);
    assert_eq!((one.bytes(), other.bytes(), shared.bytes()), (0, 7 * STEP, 0));
}

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_read_again_when_there_is_room_for_their_peer() {
    LocalSet::new()
        .run_until(async {
            let [account, _] = accounts(8 * STEP);
            let (first, second): (Rc<Load>, Rc<Load>) = Default::default();
            let [one, other] = [&first, &second].map(|load| Counted::new(&account, load));
            let wakes: [Arc<Wakes>; 2] = Default::default();
            let [driver, other_driver] = [&wakes[0], &wakes[1]].map(|wakes| RefCell::new(Arc::clone(wakes).into()));
            let woken = || [wakes[0].0.load(Relaxed), wakes[1].0.load(Relaxed)];
            let attending = spawn_local({
                let account = Rc::clone(&account);
                async move { account.attend().await }
            });
            one.set(4 * STEP);
            other.set(3 * STEP);
            assert!(is_unread(&one, 4 * STEP, false, &driver));
            assert!(is_unread(&other, 3 * STEP, false, &other_driver));
            for _ in 0..10 {
                advance(LOOK_INTERVAL).await;
            }
            assert_eq!(woken(), [0, 0]);
            // The second has room before the first has.
            other.set(STEP);
            for _ in 0..3 {
                advance(LOOK_INTERVAL).await;
            }
            assert_eq!(woken(), [0, 1]);
            one.set(0);
            assert!(one.is_relieved(0), "the taker of its bytes must wake it");
            for _ in 0..3 {
                advance(LOOK_INTERVAL).await;
            }
            assert_eq!(woken(), [1, 1]);
            assert!(account.paused.borrow().is_empty());
            attending.abort();
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_unsent_output_is_read_again_when_nothing_is_forwarded() {
    LocalSet::new()
        .run_until(async {
            let [account, _] = accounts(8 * STEP);
            let load = Rc::default();
            let (one, rest) = (Counted::new(&account, &load), Counted::new(&account, &load));
            let wakes = Arc::<Wakes>::default();
            let driver = RefCell::new(Arc::clone(&wakes).into());
            let attending = spawn_local({
                let account = Rc::clone(&account);
                async move { account.attend().await }
            });
            rest.set(5 * STEP);
            assert!(is_unread(&one, 2 * WINDOW, true, &driver));
            let look = async |times| {
                for _ in 0..times {
                    advance(LOOK_INTERVAL).await;
                    tokio::task::yield_now().await;
                }
                wakes.0.load(Relaxed)
            };
            // Some of it is forwarded now and then.
            for _ in 0..3 {
                assert_eq!(look(8).await, 0);
                rest.set(rest.held() - 1);
            }
            assert_eq!(look(12).await, 1);
            assert!(!is_unread(&one, 2 * WINDOW, true, &driver), "it needs its peer's window updates");
            let others = Counted::new(&account, &Rc::default());
            others.set(3 * STEP);
            rest.set(STEP);
            assert!(!is_unread(&one, 2 * WINDOW, true, &driver), "it has room");
            others.set(0);
            rest.set(5 * STEP);
            assert!(is_unread(&one, 2 * WINDOW, true, &driver), "it had room meanwhile, so it is not stuck");
            attending.abort();
        })
        .await;
}

#[test]
fn a_load_that_holds_little_has_room_however_much_another_holds() {
    let [account, _] = accounts(8 * STEP);
    let (greedy, modest): (Rc<Load>, Rc<Load>) = Default::default();
    let [all, mine] = [&greedy, &modest].map(|load| Counted::new(&account, load));
    all.set(9 * STEP);
    mine.set(LEAST_PART / 2);
    assert!(account.takes_calls(&modest) && !account.is_overdrawn(&modest));
    assert_eq!(mine.reads(|| (1, false), &driver()), Reads::All);
    assert!(!account.takes_calls(&greedy) && account.is_overdrawn(&greedy));
    // A connection that holds nothing is read a little, until it holds something.
    let another = Counted::new(&account, &greedy);
    assert_eq!(another.reads(|| (0, false), &driver()), Reads::Little);
    assert_eq!(another.reads(|| (1, false), &driver()), Reads::Nothing);
}
