//! A script of what a client and a service do, with the sidecar's relay between them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_sidecar::trial::relay(data));
