//! Properties that hold for all bodies, windows, chunks and pauses, and for anything that a peer may send.

mod peer;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use peer::chain;
use peer::chaos::Chaos;
use peer::choices::Choices;
use peer::frames::Frame;
use peer::script::{Role, Script};
use peer::transfer::Transfer;
use peer::uploader::Uploader;

/// Runs a property with many seeds, and prints the seed with which it fails.
fn for_seeds(seeds: u64, property: impl Fn(u64, &mut Choices)) {
    let first = std::env::var("SEED").map_or(0, |seed| seed.parse().expect("SEED is a number"));
    for seed in first..first + seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| property(seed, &mut Choices::seeded(seed))));
        if let Err(panic) = outcome {
            println!("the property fails with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn bodies_arrive_whole_and_in_order_through_any_windows() {
    let moved = Cell::new(0);
    for_seeds(1_000, |seed, choices| {
        let bytes = if seed % 10 == 0 { 3_000_000 } else { 200_000 };
        let mut transfer = Transfer::new(choices, 6, bytes);
        transfer.run(choices);
        moved.set(moved.get() + transfer.moved);
    });
    println!("{} bytes were transferred", moved.get());
}

#[test]
fn windows_are_replenished_whatever_happens_to_the_data() {
    for_seeds(100, |_, choices| Uploader::new(choices).run(choices, 1_000_000));
}

#[test]
fn no_bytes_and_no_user_make_a_connection_panic_or_grow() {
    for_seeds(5_000, |_, choices| {
        let mut script = Script::write(choices);
        if choices.one_in(4) {
            garble(&mut script, choices);
        }
        let bytes: Vec<u8> = script.frames.iter().flat_map(Frame::to_bytes).collect();
        Chaos::new(script.role, choices).play(choices, &bytes);
    });
}

#[test]
fn arbitrary_bytes_are_accepted_or_refused() {
    for_seeds(3_000, |_, choices| {
        let bytes: Vec<u8> = (0..choices.below(2_000)).map(|_| choices.below(256) as u8).collect();
        let role = choices.pick(&[Role::Server, Role::Client]);
        Chaos::new(role, choices).play(choices, &bytes);
    });
}

/// Whatever a peer sends, the relay sends only correct HTTP/2 to the peer on its other side.
#[test]
fn a_relay_forwards_only_correct_http2() {
    for_seeds(1_500, |seed, choices| {
        let mut script = Script::write(choices);
        script.is_reading |= seed % 4 > 0;
        let pieces = choices.pick(&[10, 100, usize::MAX, usize::MAX]);
        chain::play(&script, seed % 2 == 0, || pieces);
    });
}

fn garble(script: &mut Script, choices: &mut Choices) {
    for _ in 0..choices.between(1, 8) {
        let frame = choices.below(script.frames.len());
        let payload = &mut script.frames[frame].payload;
        if !payload.is_empty() {
            let at = choices.below(payload.len());
            payload[at] = choices.below(256) as u8;
        }
    }
}
