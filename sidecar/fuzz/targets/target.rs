//! The service that a head names.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_sidecar::trial::target(data));
