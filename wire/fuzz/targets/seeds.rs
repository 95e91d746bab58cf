//! Writes the committed corpus: random scripts as in the tests, as bytes with which the fuzzer starts.

#[path = "../../tests/peer/mod.rs"]
mod peer;

use std::path::Path;
use std::{fs, io};

// The coverage flags require the fuzzer's runtime in every program.
use libfuzzer_sys as _;
use peer::choices::Choices;
use peer::frames::{ACK, Frame, SETTINGS};
use peer::script::{Role, Script};
use weft_wire::hpack::Encoder;
use weft_wire::{Headers, Name};

/// Seeds longer than this are left out.
const MOST_BYTES: usize = 700;

const SEEDS: usize = 12;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    write(&corpus.join("hpack_decode"), (0..).map(blocks))?;
    let hello: Vec<u8> =
        [Frame::settings(&[]), Frame::new(SETTINGS, ACK, 0, Vec::new())].iter().flat_map(Frame::to_bytes).collect();
    for (name, role) in [("server", Role::Server), ("client", Role::Client)] {
        write(&corpus.join(name), (0..).map(|seed| [&[8; 17][..], &hello, &frames(role, seed)].concat()))?;
    }
    let written = |seed: u64| {
        let mut choices = Choices::seeded(seed);
        [vec![(seed % 4 * 2) as u8], (0..200).map(|_| choices.below(256) as u8).collect()].concat()
    };
    let read = |seed: u64, role: Role| {
        let first = 1 | if role == Role::Client { 2 } else { 0 } | (seed % 16 * 4) as u8;
        [&[first][..], &frames(role, seed)].concat()
    };
    write(&corpus.join("relay"), (0..).flat_map(|seed| [written(seed), read(seed, Role::Server)]))?;
    let roles = [Role::Server, Role::Client];
    write(&corpus.join("differential"), (0..).flat_map(|seed| [written(seed), read(seed, roles[seed as usize % 2])]))
}

fn write(folder: &Path, seeds: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, seed) in seeds.filter(|seed| seed.len() <= MOST_BYTES).take(SEEDS).enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed)?;
    }
    Ok(())
}

/// A script's bytes, without the SETTINGS and the acknowledgement with which all scripts start.
fn frames(role: Role, seed: u64) -> Vec<u8> {
    Script::write_for(role, &mut Choices::seeded(seed)).frames.iter().skip(2).flat_map(Frame::to_bytes).collect()
}

/// A few requests as our encoder writes them.
fn blocks(seed: u64) -> Vec<u8> {
    let mut choices = Choices::seeded(seed);
    let mut encoder = Encoder::new(4096);
    let mut out = vec![choices.below(256) as u8];
    for _ in 0..choices.between(2, 4) {
        let mut headers = Headers::new();
        headers.append(Name::METHOD, choices.pick(&[&b"POST"[..], b"GET", b"HEAD"]));
        headers.append(Name::PATH, choices.pick(&[&b"/"[..], b"/shop.users.v1.Users/Get"]));
        headers.append(Name::GRPC_TIMEOUT, choices.pick(&[&b"1S"[..], b"999m"]));
        headers.append_bytes(b"x-weft-seed", choices.pick(&[&b"one"[..], b"two", b"\xff\xfe"]));
        headers.append_sensitive(b"authorization", b"Bearer of it");
        let mut block = Vec::new();
        encoder.encode(&headers, &mut block);
        out.push(block.len().min(255) as u8);
        out.extend_from_slice(&block);
    }
    out
}
