//! A client's connection whose user calls any method, and whose server sends anything.
#![no_main]

#[path = "../../tests/peer/mod.rs"]
mod peer;

use libfuzzer_sys::fuzz_target;
use peer::chaos::Chaos;
use peer::choices::Choices;
use peer::script::Role;

fuzz_target!(|data: &[u8]| {
    let Some((&length, rest)) = data.split_first() else { return };
    let (user, sent) = rest.split_at(rest.len().min(2 * usize::from(length)));
    let mut choices = Choices::bytes(user);
    Chaos::new(Role::Client, &mut choices).play(&mut choices, sent);
});
