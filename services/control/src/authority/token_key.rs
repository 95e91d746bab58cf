//! The control plane's own key for join tokens.

use jsonwebtoken::{DecodingKey, EncodingKey};
use rcgen::KeyPair;

/// The key that tokens are signed with.
pub(crate) struct TokenKey {
    pub(crate) signs: EncodingKey,
    pub(crate) verifies: DecodingKey,
}

impl TokenKey {
    pub(crate) fn new(key: &KeyPair) -> Self {
        Self {
            signs: EncodingKey::from_ec_der(key.serialized_der()),
            verifies: DecodingKey::from_ec_der(key.public_key_raw()),
        }
    }
}
