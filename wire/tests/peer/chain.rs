//! A client made of a script, our relay, and a server, which must see nothing but HTTP/2 as it should be.

use std::sync::Arc;

use super::frames::PREFACE;
use super::ours::{Ours, script_limits};
use super::relay::{Leg, Relay};
use super::script::{Role, Script};
use super::seen::{Seen, Tap};
use super::theirs::Theirs;

/// The server behind the relay.
pub enum Backend {
    Ours(Box<Ours>),
    Theirs(Box<Theirs>),
}

impl Backend {
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Backend::Ours(ours) => {
                ours.feed(bytes);
                std::mem::take(&mut ours.written)
            }
            Backend::Theirs(theirs) => {
                theirs.feed(bytes);
                std::mem::take(&mut theirs.written)
            }
        }
    }

    fn seen(&self) -> &Seen {
        match self {
            Backend::Ours(ours) => &ours.seen,
            Backend::Theirs(theirs) => &theirs.seen,
        }
    }
}

/// Plays a script, in pieces that `cut` gives the lengths of, and says what the server saw.
pub fn play(script: &Script, with_h2: bool, mut cut: impl FnMut() -> usize) -> Seen {
    let backend = Script { role: Role::Server, ..script.clone() };
    let mut backend = match with_h2 {
        true => Backend::Theirs(Box::new(Theirs::new(&backend))),
        false => Backend::Ours(Box::new(Ours::new(&backend))),
    };
    let mut relay = Relay::new(&Arc::new(script_limits()));
    let mut client = Tap::new(false);
    relay.receive(Leg::Down, PREFACE);
    let hello = relay.take_output(Leg::Up);
    let hello = backend.feed(hello.strip_prefix(PREFACE).expect("a client begins with its preface"));
    relay.receive(Leg::Up, &hello);
    pump(&mut relay, &mut backend, &mut client);
    for frame in &script.frames {
        for piece in frame.to_bytes().chunks(cut().max(1)) {
            relay.receive(Leg::Down, piece);
            pump(&mut relay, &mut backend, &mut client);
        }
        assert!(matches!(backend.seen().goaway, None | Some(0)), "the server saw an error after {frame:?}");
    }
    relay.end(Leg::Down);
    pump(&mut relay, &mut backend, &mut client);
    assert_eq!(relay.streams()[1], 0, "calls go on without their client");
    backend.seen().clone()
}

fn pump(relay: &mut Relay, backend: &mut Backend, client: &mut Tap) {
    loop {
        client.take(&relay.take_output(Leg::Down));
        let up = relay.take_output(Leg::Up);
        let back = backend.feed(&up);
        relay.receive(Leg::Up, &back);
        if up.is_empty() && back.is_empty() && relay.is_quiet() {
            return;
        }
    }
}
