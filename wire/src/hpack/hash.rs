//! The hash by which the encoder finds a field in its table. The bytes are compared afterwards, so a collision, even a
//! deliberate one, only makes compression worse.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use crate::headers::name::{Id, OTHER};

/// One seed for the whole process, since a field carries its hash from one connection to another.
static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u64));

/// 2^64 divided by the golden ratio: odd, with well-spread bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a field, never 0. `name` is used only if it is not a known name.
pub(crate) fn of_field(id: Id, name: &[u8], value: &[u8]) -> u32 {
    let mut hash = name_hash(id, name);
    hash = add(hash, value);
    finish(hash)
}

/// The hash of a name, never 0. It is computed differently from the hash of a field with that name.
pub(crate) fn of_name(id: Id, name: &[u8]) -> u32 {
    finish(name_hash(id, name))
}

fn name_hash(id: Id, name: &[u8]) -> u64 {
    let hash = *SEED ^ u64::from(id);
    if id == OTHER { add(hash, name) } else { hash }
}

fn add(mut hash: u64, bytes: &[u8]) -> u64 {
    hash ^= (bytes.len() as u64) << 32;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        hash = mix(hash ^ u64::from_le_bytes(*chunk));
    }
    mix(hash ^ tail(bytes, rest))
}

/// The last bytes that do not fill a chunk. They may overlap with bytes before them, to avoid reading one byte at a
/// time.
fn tail(bytes: &[u8], rest: &[u8]) -> u64 {
    if let Some(last) = bytes.last_chunk::<8>() {
        return u64::from_le_bytes(*last);
    }
    if let (Some(first), Some(last)) = (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
        return u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last));
    }
    rest.iter().fold(0, |all, &byte| all << 8 | u64::from(byte))
}

fn mix(bits: u64) -> u64 {
    let product = u128::from(bits ^ 0x2545_f491_4f6c_dd1d) * u128::from(FACTOR);
    product as u64 ^ (product >> 64) as u64
}

fn finish(hash: u64) -> u32 {
    let hash = mix(hash);
    ((hash ^ hash >> 32) as u32).max(1)
}
