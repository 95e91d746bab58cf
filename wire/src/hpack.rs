//! Compression of header blocks (RFC 7541).

mod decoder;
mod encoder;

pub use decoder::{Decoded, Decoder, HpackError, Malformed};
pub use encoder::Encoder;
