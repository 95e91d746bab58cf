//! A peer that sends anything, a relay of two connections, and a correct peer on its other side, which must see no
//! error.
#![no_main]

#[path = "../../tests/peer/mod.rs"]
mod peer;

use libfuzzer_sys::fuzz_target;
use peer::chain;
use peer::choices::Choices;
use peer::script::{Role, Script};

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let role = if first & 32 == 0 { Role::Server } else { Role::Client };
    let script = match first & 1 {
        0 => Script::write_for(role, &mut Choices::bytes(rest)),
        _ => Script::read(role, first, rest),
    };
    let piece = [usize::MAX, usize::MAX, 100, 7][usize::from(first >> 6)];
    chain::play(&script, first & 2 != 0, || piece);
});
