//! Feeds the same bytes to our connection and to the h2 crate's: they must behave the same, except where the table says
//! why they differ.
#![no_main]

#[path = "../../tests/peer/mod.rs"]
mod peer;

use libfuzzer_sys::fuzz_target;
use peer::by_design::by_design;
use peer::choices::Choices;
use peer::differences::compare;
use peer::script::{Role, Script};

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let role = if first & 2 == 0 { Role::Server } else { Role::Client };
    let script = match first & 1 {
        0 => Script::write_for(role, &mut Choices::bytes(rest)),
        _ => Script::read(role, first, rest),
    };
    if let Some(difference) = compare(&script)
        && by_design(&script, &difference).is_none()
    {
        panic!("{script:#?}\n{difference:#?}");
    }
});
