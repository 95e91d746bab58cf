//! HPACK: compression of header lists into header blocks (RFC 7541). RFC 9113 calls a header block a field block.
//!
//! Most fields that pass through a relay arrive as an index into one connection's dynamic table and leave as an index
//! into another's. So an entry of the decoder's table keeps what the decoder has computed (the number of the name, the
//! hash, the fault), the field carries this in [`Headers`](crate::Headers), and the encoder finds its own entry with
//! one look-up.

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
