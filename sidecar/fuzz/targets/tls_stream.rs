//! A script of what a peer with a valid certificate sends over TLS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_sidecar::trial::tls_stream(data));
