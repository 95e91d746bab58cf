//! Our relay between a peer that plays a script and a correct peer, which must see only correct HTTP/2.

use std::sync::Arc;

use super::frames::{Frame, PREFACE};
use super::ours::{Ours, script_limits};
use super::relay::{Leg, Relay};
use super::script::{Role, Script};
use super::seen::{Seen, Tap};
use super::theirs::Theirs;

/// The correct peer.
enum Proper {
    Ours(Box<Ours>),
    Theirs(Box<Theirs>),
}

impl Proper {
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Proper::Ours(ours) => {
                ours.feed(bytes);
                std::mem::take(&mut ours.written)
            }
            Proper::Theirs(theirs) => {
                theirs.feed(bytes);
                std::mem::take(&mut theirs.written)
            }
        }
    }

    fn seen(&self) -> &Seen {
        match self {
            Proper::Ours(ours) => &ours.seen,
            Proper::Theirs(theirs) => &theirs.seen,
        }
    }
}

struct Chain {
    relay: Relay,
    /// The legs of the correct peer and of the other one.
    near: Leg,
    far: Leg,
    proper: Proper,
    tap: Tap,
}

/// Plays a script in pieces whose lengths `cut` gives, and returns what the correct peer on the other side saw: a
/// server if the script is a client's, and a client if it is a server's.
pub fn play(script: &Script, with_h2: bool, mut cut: impl FnMut() -> usize) -> Seen {
    let mut chain = Chain::new(script, with_h2);
    for frame in &script.frames {
        for piece in frame.to_bytes().chunks(cut().max(1)) {
            chain.relay.receive(chain.far, piece);
            chain.pump();
        }
        chain.assert_proper(frame);
    }
    chain.relay.end(chain.far);
    chain.pump();
    // A server that does not read may have responded early. The request's queued data then keeps its stream open.
    if chain.near == Leg::Up && script.is_reading {
        assert_eq!(chain.relay.streams()[1], 0, "calls continue without their client");
    }
    chain.proper.seen().clone()
}

impl Chain {
    fn new(script: &Script, with_h2: bool) -> Self {
        // The correct peer has the role for which the script was written.
        let mut proper = match with_h2 {
            true => Proper::Theirs(Box::new(Theirs::new(script))),
            false => Proper::Ours(Box::new(Ours::new(script))),
        };
        let mut relay = Relay::new(&Arc::new(script_limits()));
        let (near, far) = match script.role {
            Role::Server => (Leg::Up, Leg::Down),
            Role::Client => (Leg::Down, Leg::Up),
        };
        let hello = match script.role {
            Role::Server => {
                relay.receive(Leg::Down, PREFACE);
                let hello = relay.take_output(Leg::Up);
                proper.feed(hello.strip_prefix(PREFACE).expect("a client starts with its preface"))
            }
            Role::Client => proper.feed(&[]),
        };
        relay.receive(near, &hello);
        let mut this = Self { relay, near, far, proper, tap: Tap::new(script.role == Role::Client) };
        this.pump();
        this
    }

    fn pump(&mut self) {
        loop {
            self.tap.take(&self.relay.take_output(self.far));
            let there = self.relay.take_output(self.near);
            let back = self.proper.feed(&there);
            self.relay.receive(self.near, &back);
            if there.is_empty() && back.is_empty() && self.relay.is_quiet() {
                return;
            }
        }
    }

    fn assert_proper(&self, frame: &Frame) {
        const PROTOCOL_ERROR: u32 = 1;
        let seen = self.proper.seen();
        assert!(matches!(seen.goaway, None | Some(0)), "the correct peer saw a connection error after {frame:?}");
        if matches!(self.proper, Proper::Ours(_)) {
            let error = seen.resets.iter().find(|(_, code)| **code == PROTOCOL_ERROR);
            assert_eq!(error, None, "the correct peer saw a stream error after {frame:?}");
        }
    }
}
