//! How a connection's turn ends when there is more to do.

use std::{pin::pin, task::Context};

use tokio::task::yield_now;

/// Bytes that one turn reads at most, so that one busy connection does not make the others wait.
pub(crate) const BYTES_A_TURN: usize = 512 * 1024;

/// Asks for another turn of this task, after the runtime has polled the sockets and timers of all tasks.
///
/// A task that only wakes its own waker is polled again at once. The runtime polls sockets after 61 such turns, so one
/// connection with endless input would make every other one wait that long.
pub(crate) fn give_way(cx: &mut Context<'_>) {
    // The first poll is pending and hands the waker to the runtime, which wakes it after it has polled sockets.
    let _ = pin!(yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, io::Write, os::unix::net::UnixStream, rc::Rc, task::Poll};

    use tokio::task::spawn_local;

    use super::give_way;

    /// With `wake_by_ref` in place of `give_way`, the busy task has dozens of turns before the other task's socket is
    /// polled.
    #[test]
    fn a_task_that_always_has_more_to_do_gets_one_turn_before_sockets_are_polled() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        runtime.unwrap().block_on(async {
            let turns = Rc::new(Cell::new(0));
            let counted = Rc::clone(&turns);
            spawn_local(poll_fn(move |cx| {
                counted.set(counted.get() + 1);
                give_way(cx);
                Poll::<()>::Pending
            }));
            // What is written to a Unix socket can be read at once.
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
            let receive = async || loop {
                theirs.readable().await.unwrap();
                if theirs.try_read(&mut [0; 8]).is_ok() {
                    return;
                }
            };
            for round in 0..10 {
                let before = turns.get();
                ours.write_all(b"x").unwrap();
                receive().await;
                let taken = turns.get() - before;
                assert!(taken <= 3, "round {round}: {taken} turns");
            }
        });
    }
}
