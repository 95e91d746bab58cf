//! Signed tokens: JWTs (RFC 7519) with ES256, and the key set (RFC 7517) that they are checked with.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use weft_kit::ids;

/// `iss` of every token.
pub(crate) const ISSUER: &str = "auth.shop";

/// How long a token is valid.
const LIFE: Duration = Duration::from_secs(3600);

/// The claims of a token (RFC 7519, section 4.1).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: String,
    pub(crate) iat: u64,
    pub(crate) exp: u64,
    pub(crate) jti: String,
}

/// The key, and its public part as it is published.
pub(crate) struct Tokens {
    key: EncodingKey,
    key_id: String,
    jwks_json: String,
}

impl Tokens {
    /// With a new key.
    pub(crate) fn with_new_key() -> anyhow::Result<Self> {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| anyhow!("can't make a key"))?;
        Self::with_key(key.as_ref())
    }

    /// With the key in a file.
    pub(crate) fn open(file: &Path) -> anyhow::Result<Self> {
        let key = PrivatePkcs8KeyDer::from_pem_file(file)
            .map_err(|error| anyhow!("{}: this can't be read as a PKCS#8 key in PEM: {error}", file.display()))?;
        Self::with_key(key.secret_pkcs8_der()).with_context(|| format!("{}", file.display()))
    }

    fn with_key(pkcs8: &[u8]) -> anyhow::Result<Self> {
        let key = EncodingKey::from_ec_der(pkcs8);
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).context("this is not an EC P-256 key")?;
        let key_id = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        jwk.common.key_id = Some(key_id.clone());
        let jwks_json = serde_json::to_string(&JwkSet { keys: vec![jwk] })?;
        Ok(Self { key, key_id, jwks_json })
    }

    /// The key set as JSON.
    pub(crate) fn jwks_json(&self) -> &str {
        &self.jwks_json
    }

    /// A token for a user, and when it expires.
    pub(crate) fn issue(&self, user_id: &str, now: SystemTime) -> anyhow::Result<(String, SystemTime)> {
        let expires = now + LIFE;
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map(|since| since.as_secs());
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: user_id.to_owned(),
            iat: seconds(now)?,
            exp: seconds(expires)?,
            jti: ids::new_id(),
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        Ok((jsonwebtoken::encode(&header, &claims, &self.key)?, expires))
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};

    use super::*;

    /// Checks a token with nothing but the published key set.
    fn check(token: &str, jwks_json: &str) -> jsonwebtoken::errors::Result<Claims> {
        let keys: JwkSet = serde_json::from_str(jwks_json).unwrap();
        let key_id = decode_header(token)?.kid.unwrap();
        let key = keys.find(&key_id).or(keys.keys.first()).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        decode(token, &DecodingKey::from_jwk(key)?, &validation).map(|data| data.claims)
    }

    #[test]
    fn a_token_is_valid_only_with_the_published_keys() {
        let tokens = Tokens::with_new_key().unwrap();
        let (token, _) = tokens.issue("ada", SystemTime::now()).unwrap();
        let claims = check(&token, tokens.jwks_json()).unwrap();
        assert_eq!((claims.sub.as_str(), claims.exp - claims.iat), ("ada", 3600));
        assert!(!tokens.jwks_json().contains("\"d\""), "a private key in {}", tokens.jwks_json());

        let other = Tokens::with_new_key().unwrap();
        assert!(check(&token, other.jwks_json()).is_err());
        let (expired, _) = tokens.issue("ada", SystemTime::now() - 2 * LIFE).unwrap();
        assert!(check(&expired, tokens.jwks_json()).is_err());
    }

    #[test]
    fn a_file_that_holds_no_key_is_named() {
        let error = Tokens::open(Path::new("/nowhere/key.pem")).err().unwrap().to_string();
        assert!(error.starts_with("/nowhere/key.pem: "), "{error}");
    }
}
