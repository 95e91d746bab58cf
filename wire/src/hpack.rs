//! Compression of header blocks (RFC 7541).
//!
//! A field that passes through a relay comes as an index into one connection's table and leaves as an index into another's. So an entry
//! of the decoder's table keeps what it took to find out (the name's number, the hash, what is wrong with it), the field carries it in
//! [`Headers`](crate::Headers), and the encoder finds its own entry by one look-up.

mod decoder;
mod encoder;
mod fault;
mod hash;
mod huffman;
mod index;
mod policy;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

pub use decoder::{Decoded, Decoder};
pub use encoder::Encoder;
pub use fault::{HpackError, Malformed};
pub use table::DEFAULT_TABLE_BYTES;
