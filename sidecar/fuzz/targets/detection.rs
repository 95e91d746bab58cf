//! The first bytes of a client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_sidecar::trial::detection(data));
