//! Join tokens: a sidecar outside Kubernetes that has no SVID yet proves its identity with one.
//!
//! A token is a JWT (RFC 7519) signed with the control plane's own P-256 key: `sub` is the SPIFFE ID that it is for,
//! `aud` the trust domain, `exp` the time of its expiry. It may be used more than once, as all replicas of a service
//! share one.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use weft_mesh::identity::{SpiffeId, TrustDomain};

use super::{ca::Ca, network::Network};

/// Why a token was not made or not accepted. The text is for the peer and contains no part of the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It has expired.
    #[error("the join token has expired: make a new one with `weft-control token`")]
    Expired,
    /// It was not signed with this control plane's key, or was changed.
    #[error("the join token was not signed by this control plane")]
    Forged,
    /// It is for another trust domain.
    #[error("the join token is not for the trust domain {0}")]
    Foreign(TrustDomain),
    /// It is not a token.
    #[error("the join token is malformed: {0}")]
    Malformed(String),
    /// It could not be signed.
    #[error("no join token could be made: {0}")]
    Signing(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
    /// Networks where the identity's endpoints may be, besides the host that announces them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    weft_hosts: Vec<String>,
}

/// What a token proves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) id: SpiffeId,
    pub(crate) hosts: Vec<Network>,
}

/// Makes a token with which a sidecar becomes `id` until `ttl` has passed.
///
/// # Errors
/// The identity is of another trust domain, or signing failed.
pub fn issue(ca: &Ca, id: &SpiffeId, ttl: Duration) -> Result<String, TokenError> {
    issue_for(ca, id, &[], ttl)
}

/// Like [`issue`], for an identity whose endpoints may also be in these networks, and not only on the host that
/// announces them.
///
/// # Errors
/// As for [`issue`].
pub fn issue_for(ca: &Ca, id: &SpiffeId, hosts: &[Network], ttl: Duration) -> Result<String, TokenError> {
    issue_at(ca, id, hosts, ttl, SystemTime::now())
}

fn issue_at(ca: &Ca, id: &SpiffeId, hosts: &[Network], ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
    if id.trust_domain() != ca.trust_domain() {
        return Err(TokenError::Foreign(ca.trust_domain().clone()));
    }
    let seconds = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let aud = ca.trust_domain().to_string();
    let weft_hosts = hosts.iter().map(ToString::to_string).collect();
    let claims = Claims { sub: id.to_string(), aud, iat: seconds(now), exp: seconds(now + ttl), weft_hosts };
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &ca.token_key().signs)
        .map_err(|e| TokenError::Signing(e.to_string()))
}

/// The identity that a token proves, and where its endpoints may be.
pub(crate) fn verify(ca: &Ca, token: &str) -> Result<Proven, TokenError> {
    let mut rules = Validation::new(Algorithm::ES256);
    // It was signed by the same clock, so no leeway is needed.
    rules.leeway = 0;
    rules.set_audience(&[ca.trust_domain().as_str()]);
    rules.set_required_spec_claims(&["exp", "aud", "sub"]);
    let token =
        jsonwebtoken::decode::<Claims>(token, &ca.token_key().verifies, &rules).map_err(|e| match e.kind() {
            ErrorKind::ExpiredSignature => TokenError::Expired,
            ErrorKind::InvalidAudience => TokenError::Foreign(ca.trust_domain().clone()),
            ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
                TokenError::Forged
            }
            _ => TokenError::Malformed(e.to_string()),
        })?;
    let id: SpiffeId = token.claims.sub.parse().map_err(|e| TokenError::Malformed(format!("{e}")))?;
    if id.trust_domain() != ca.trust_domain() {
        return Err(TokenError::Foreign(ca.trust_domain().clone()));
    }
    let hosts = token.claims.weft_hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>();
    Ok(Proven { id, hosts: hosts.map_err(TokenError::Malformed)? })
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn ca_of(domain: &str) -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), &domain.parse().unwrap()).unwrap();
        (dir, ca)
    }

    fn users() -> SpiffeId {
        "spiffe://weft.test/ns/shop/sa/users".parse().unwrap()
    }

    #[test]
    fn a_token_proves_the_identity_it_names_even_after_a_restart() {
        let (dir, ca) = ca_of("weft.test");
        let token = issue(&ca, &users(), HOUR).unwrap();
        assert_eq!(verify(&ca, &token).unwrap().id, users());
        let restarted = Ca::open_or_create(dir.path(), ca.trust_domain()).unwrap();
        assert_eq!(verify(&restarted, &token).unwrap().id, users());
    }

    #[test]
    fn a_token_names_networks_for_its_identitys_endpoints() {
        let (_dir, ca) = ca_of("weft.test");
        let hosts: Vec<Network> = ["10.1.0.0/16", "fd00::1/128"].map(|host| host.parse().unwrap()).to_vec();
        let token = issue_for(&ca, &users(), &hosts, HOUR).unwrap();
        assert_eq!(verify(&ca, &token).unwrap(), Proven { id: users(), hosts });
        assert!(verify(&ca, &issue(&ca, &users(), HOUR).unwrap()).unwrap().hosts.is_empty());
    }

    #[test]
    fn an_expired_token_is_refused() {
        let (_dir, ca) = ca_of("weft.test");
        let token = issue_at(&ca, &users(), &[], HOUR, SystemTime::now() - HOUR - Duration::from_secs(1)).unwrap();
        assert!(matches!(verify(&ca, &token), Err(TokenError::Expired)));
    }

    #[test]
    fn a_token_of_another_control_plane_is_refused() {
        let (_dir, ca) = ca_of("weft.test");
        let (_other_dir, forger) = ca_of("weft.test");
        assert!(matches!(verify(&ca, &issue(&forger, &users(), HOUR).unwrap()), Err(TokenError::Forged)));
    }

    #[test]
    fn a_token_for_another_trust_domain_is_refused_even_under_the_same_key() {
        let (_dir, ca) = ca_of("weft.test");
        let foreign = "spiffe://elsewhere/ns/shop/sa/users".parse().unwrap();
        assert!(matches!(issue(&ca, &foreign, HOUR), Err(TokenError::Foreign(_))));
        let sign = |sub: &str, aud: &str| {
            let claims = Claims { sub: sub.into(), aud: aud.into(), iat: 0, exp: u64::MAX / 2, weft_hosts: Vec::new() };
            jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &ca.token_key().signs).unwrap()
        };
        let ours = "spiffe://weft.test/ns/shop/sa/users";
        assert!(matches!(verify(&ca, &sign(ours, "elsewhere")), Err(TokenError::Foreign(_))));
        assert!(matches!(verify(&ca, &sign(&foreign.to_string(), "weft.test")), Err(TokenError::Foreign(_))));
        assert_eq!(verify(&ca, &sign(ours, "weft.test")).unwrap().id, users());
    }

    #[test]
    fn a_tampered_token_is_refused() {
        let (_dir, ca) = ca_of("weft.test");
        let token = issue(&ca, &users(), HOUR).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let claims = URL_SAFE_NO_PAD.encode(claims.replace("sa/users", "sa/admin"));
        let changed = [parts[0], &claims, parts[2]].join(".");
        assert!(matches!(verify(&ca, &changed), Err(TokenError::Forged)));

        let unsigned = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"none"}"#);
        assert!(verify(&ca, &[unsigned.as_str(), parts[1], ""].join(".")).is_err());
        let mac = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &serde_json::json!({ "sub": users().to_string(), "aud": "weft.test", "exp": u64::MAX / 2 }),
            &jsonwebtoken::EncodingKey::from_secret(b"guess"),
        );
        assert!(matches!(verify(&ca, &mac.unwrap()), Err(TokenError::Forged)));
        for nonsense in ["", "a.b.c", "...."] {
            assert!(verify(&ca, nonsense).is_err());
        }
    }
}
