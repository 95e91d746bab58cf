//! Compares pairs of our connections with a model of the stream states of RFC 9113, section 5.1. In every possible
//! order of actions, each endpoint must report to its user exactly what the model says, and no stream may be left at
//! the end.

#![allow(unreachable_pub, reason = "these modules belong to a test")]

mod pair;
#[path = "../peer/mod.rs"]
mod peer;
mod states;

use std::panic::{AssertUnwindSafe, catch_unwind};

use pair::Pair;
use peer::choices::Choices;
use states::{Action, Model, Side};

/// Tries all paths of `depth` actions.
struct Walk {
    streams: u32,
    with_drain: bool,
    pair: Pair,
    ways: usize,
    path: Vec<Action>,
}

impl Walk {
    fn all(streams: u32, with_drain: bool, depth: usize) -> usize {
        let mut walk = Walk { streams, with_drain, pair: Pair::new(), ways: 0, path: Vec::new() };
        walk.go(&Model::default(), depth);
        walk.ways
    }

    fn go(&mut self, model: &Model, depth: usize) {
        let actions = model.actions(self.streams, 100, self.with_drain);
        if depth == 0 || actions.is_empty() {
            return self.try_way();
        }
        for action in actions {
            self.path.push(action);
            let mut next = model.clone();
            next.act(action);
            self.go(&next, depth - 1);
            self.path.pop();
        }
    }

    fn try_way(&mut self) {
        self.ways += 1;
        let is_draining = self.path.iter().any(|action| matches!(action, Action::Drain(_)));
        if is_draining {
            self.pair = Pair::new();
        }
        let (pair, path) = (&mut self.pair, &self.path);
        // Now and then, the windows are checked and a new pair is made.
        let is_last = self.ways.is_multiple_of(500);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut model = Model::default();
            for action in path {
                pair.step(&mut model, *action);
            }
            finish(pair, &mut model);
            if is_last && !is_draining {
                pair.assert_windows();
            }
        }));
        if let Err(panic) = outcome {
            println!("way {}: {:#?}", self.ways, self.path);
            std::panic::resume_unwind(panic);
        }
        if is_draining || is_last {
            self.pair = Pair::new();
        } else {
            self.pair.again();
        }
    }
}

/// Delivers everything on the wire, and resets the streams that are then still open.
fn finish(pair: &mut Pair, model: &mut Model) {
    loop {
        for side in [Side::Client, Side::Server] {
            while !model.wire[side.peer() as usize].is_empty() {
                pair.step(model, Action::Deliver(side));
            }
        }
        let living = [Side::Client, Side::Server].into_iter().find_map(|side| {
            let stream = model.ends[side as usize].streams.iter().find(|(_, state)| !state.is_gone())?.0;
            Some(Action::Reset { side, stream: *stream })
        });
        match living {
            Some(reset) => pair.step(model, reset),
            None if model.wire.iter().all(|wire| wire.is_empty()) => break,
            None => {}
        }
    }
    pair.assert_empty(model.is_draining());
}

#[test]
fn one_stream_in_every_order() {
    println!("{} ways", Walk::all(1, false, 9));
}

#[test]
fn two_streams_in_every_order() {
    println!("{} ways", Walk::all(2, false, 6));
}

#[test]
fn one_stream_and_drains_in_every_order() {
    println!("{} ways", Walk::all(1, true, 6));
}

#[test]
fn two_streams_and_drains_in_every_order() {
    println!("{} ways", Walk::all(2, true, 5));
}

/// Long walks over several streams. Users also act on streams that are gone, send interim responses, detach from
/// streams, and use one connection for thousands of streams.
#[test]
fn long_walks() {
    for seed in 0..20 {
        let mut choices = Choices::seeded(seed);
        let mut pair = Pair::new();
        for round in 0..30 {
            let mut model = Model::default();
            let mut path = Vec::new();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                for _ in 0..60 {
                    let Some(action) = long_step(&model, &mut choices) else { break };
                    path.push(action);
                    pair.step(&mut model, action);
                }
                finish(&mut pair, &mut model);
                pair.assert_windows();
            }));
            if let Err(panic) = outcome {
                println!("seed {seed}, round {round}: {path:#?}");
                std::panic::resume_unwind(panic);
            }
            pair.again();
        }
    }
}

fn long_step(model: &Model, choices: &mut Choices) -> Option<Action> {
    let mut actions = model.actions(12, 0, false);
    for side in [Side::Client, Side::Server] {
        for (&stream, state) in &model.ends[side as usize].streams {
            if state.has_sent_end() {
                continue;
            }
            if side == Side::Server && !state.has_sent_head() {
                actions.push(Action::Inform(stream));
                continue;
            }
            if state.sent_bytes < 20_000 && model.wire[side as usize].len() < 8 {
                let bytes = choices.below(2_000);
                actions.extend([false, true].map(|is_end| Action::Data { side, stream, bytes, is_end }));
            }
            if state.is_gone() {
                actions.extend([Action::Trailers { side, stream }, Action::Reset { side, stream }]);
            }
            if choices.one_in(6) {
                actions.push(Action::Detach { side, stream });
            }
        }
    }
    // Few resets, since they end walks early.
    if !choices.one_in(8) {
        actions.retain(|action| !matches!(action, Action::Reset { .. }));
    }
    (!actions.is_empty()).then(|| choices.pick(&actions))
}
