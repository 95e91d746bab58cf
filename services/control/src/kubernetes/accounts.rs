//! Who a pod is: its service account, proven by a token that was made for Weft only.
//!
//! What a token says of itself is read first ([`claimed`]). That proves nothing, but a token that says something wrong
//! needs no review by the API server. What the API server says of it is the proof ([`judge`]).

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    names::{ServiceName, shown},
};

use super::names::TOKEN_AUDIENCE;

/// The longest token that is sent to the API server.
const TOKEN_BYTES: usize = 16 * 1024;
/// The start of the names of service accounts.
const ACCOUNT: &str = "system:serviceaccount:";
/// How much the clocks of the API server and of this host may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// What the API server says of a token (`TokenReview`, `authentication.k8s.io/v1`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Review {
    pub(crate) is_authenticated: bool,
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub(crate) username: String,
    pub(crate) audiences: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
    pub(crate) error: String,
}

/// Asks the API server about a token.
pub(crate) trait Tokens: Send + Sync {
    /// What it says of the token, for [`TOKEN_AUDIENCE`].
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>>;
}

/// Why a token proves nothing. The text is for the peer and contains no part of the token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    /// It is not a token of a service account, so the API server was not asked.
    #[error("the join token is not the token of a service account: {0}")]
    Malformed(&'static str),
    /// The API server does not accept it.
    #[error("the API server does not accept the token of the service account: {0}")]
    Refused(String),
    /// It is for another audience, such as the API server: whoever may read it there must not become its pod here.
    #[error("the token of the service account is not for the audience `{TOKEN_AUDIENCE}`")]
    Audience,
    /// It is not bound to a pod.
    #[error("the token of the service account is not bound to a pod: mount it as a projected volume")]
    Unbound,
    /// The service account can't be an identity.
    #[error("the service account {0} can't be an identity of the mesh: its name must be a DNS label")]
    Name(String),
    /// It has expired.
    #[error("the token of the service account has expired")]
    Expired,
    /// Too many tokens came from the same network.
    #[error("too many tokens come from this address; try again later")]
    TooOften,
    /// There was no turn for a review.
    #[error("too many tokens are being reviewed; try again later")]
    Busy,
    /// The API server did not answer.
    #[error("the API server could not be asked about the token")]
    Unanswered(#[source] anyhow::Error),
}

/// What counts of a token's payload (RFC 7519, section 4.1, and the private claim of Kubernetes).
#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    sub: String,
    aud: Option<Audiences>,
    exp: Option<u64>,
    #[serde(rename = "kubernetes.io")]
    bound_to: Option<Bound>,
}

/// RFC 7519, section 4.1.3: one, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Bound {
    pod: Option<serde::de::IgnoredAny>,
}

/// The service account that a token says it is for. Nothing is proven by that: anybody can write such a token.
pub(crate) fn claimed(token: &str, now: SystemTime) -> Result<ServiceName, AccountError> {
    if token.len() > TOKEN_BYTES {
        return Err(AccountError::Malformed("it is too long"));
    }
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let parts: Vec<&str> = token.split('.').collect();
    let [_, payload, _] = parts[..] else { return Err(AccountError::Malformed("it is not a JWT")) };
    if parts.iter().any(|part| part.is_empty() || !part.bytes().all(is_base64)) {
        return Err(AccountError::Malformed("it is not a JWT"));
    }
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| AccountError::Malformed("it is not a JWT"))?;
    let payload: Payload = serde_json::from_slice(&payload)
        .map_err(|_| AccountError::Malformed("its content is not that of a service account's token"))?;
    if !payload.sub.starts_with(ACCOUNT) {
        return Err(AccountError::Malformed("it is for somebody else"));
    }
    let is_for_weft = match &payload.aud {
        Some(Audiences::One(audience)) => audience == TOKEN_AUDIENCE,
        Some(Audiences::Several(audiences)) => audiences.iter().any(|audience| audience == TOKEN_AUDIENCE),
        None => false,
    };
    if !is_for_weft {
        return Err(AccountError::Audience);
    }
    if payload.bound_to.and_then(|bound_to| bound_to.pod).is_none() {
        return Err(AccountError::Unbound);
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if payload.exp.is_none_or(|exp| Duration::from_secs(exp).saturating_add(CLOCKS_DIFFER) <= now) {
        return Err(AccountError::Expired);
    }
    service(&payload.sub)
}

/// The identity that a token proves, by what the API server says of it.
pub(crate) fn judge(trust_domain: &TrustDomain, review: Review) -> Result<SpiffeId, AccountError> {
    if !review.is_authenticated {
        return Err(AccountError::Refused(shown(&review.error)));
    }
    // An API server that knows nothing of audiences answers without them.
    if !review.audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(AccountError::Audience);
    }
    // A token that is not bound to a pod is valid for as long as it says, whatever becomes of the pod.
    let pod = review.extra.get("authentication.kubernetes.io/pod-uid").and_then(|uids| uids.first());
    if pod.is_none_or(String::is_empty) {
        return Err(AccountError::Unbound);
    }
    Ok(SpiffeId::of_service(trust_domain, &service(&review.username)?))
}

/// The service of a service account, `system:serviceaccount:NAMESPACE:NAME`.
fn service(username: &str) -> Result<ServiceName, AccountError> {
    let account = username.strip_prefix(ACCOUNT).and_then(|account| account.split_once(':'));
    let Some((namespace, name)) = account else {
        return Err(AccountError::Refused(format!("`{}` is not a service account", shown(username))));
    };
    ServiceName::new(name, namespace).map_err(|_| AccountError::Name(shown(username)))
}

/// A token as the API server makes them, but for its signature.
#[cfg(test)]
pub(crate) fn token_of(namespace: &str, account: &str, signature: &str) -> String {
    let payload = serde_json::json!({
        "aud": [TOKEN_AUDIENCE], "exp": 9_999_999_999_u64, "iss": "https://kubernetes.default.svc.cluster.local",
        "sub": format!("{ACCOUNT}{namespace}:{account}"),
        "kubernetes.io": {
            "namespace": namespace, "pod": {"name": "a", "uid": "0a1b"}, "serviceaccount": {"name": account, "uid": "2c3d"},
        },
    });
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(&payload.to_string()), part(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "authentication.kubernetes.io/pod-uid";

    fn good() -> Review {
        Review {
            is_authenticated: true,
            username: "system:serviceaccount:shop:users".into(),
            audiences: vec!["other".into(), TOKEN_AUDIENCE.into()],
            extra: BTreeMap::from([(UID.to_owned(), vec!["0a1b".to_owned()])]),
            error: String::new(),
        }
    }

    fn of(review: Review) -> Result<String, String> {
        let judged = judge(&"weft.test".parse().unwrap(), review);
        judged.map(|id| id.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_for_weft_that_is_bound_to_a_pod_proves_its_service_account() {
        assert_eq!(of(good()).unwrap(), "spiffe://weft.test/ns/shop/sa/users");
        let error = "token has expired".to_owned();
        let why = of(Review { is_authenticated: false, error, ..good() }).unwrap_err();
        assert!(why.ends_with("token has expired"), "{why}");
        for audiences in [vec![], vec!["https://kubernetes.default.svc".to_owned()]] {
            let why = of(Review { audiences, ..good() }).unwrap_err();
            assert!(why.contains("not for the audience `weft`"), "{why}");
        }
        for extra in [BTreeMap::new(), BTreeMap::from([(UID.to_owned(), vec![String::new()])])] {
            let why = of(Review { extra, ..good() }).unwrap_err();
            assert!(why.contains("not bound to a pod"), "{why}");
        }
        for username in ["system:node:node-1", "system:serviceaccount:shop", "admin"] {
            let why = of(Review { username: username.into(), ..good() }).unwrap_err();
            assert!(why.contains("is not a service account"), "{why}");
        }
        // Kubernetes allows dots in the names of service accounts.
        let why = of(Review { username: "system:serviceaccount:shop:a.b".into(), ..good() }).unwrap_err();
        assert!(why.contains("a.b can't be an identity"), "{why}");
    }

    #[test]
    fn what_is_no_token_needs_no_review() {
        for nonsense in [
            "",
            "a.b",
            "a.b.c.d",
            "a..c",
            "a.b.c\n",
            "a.b.{}",
            "e30.e30.c2ln",
            "e30.bnVsbA.c2ln",
            &format!("a.{}.c", "b".repeat(TOKEN_BYTES)),
        ] {
            let refused = claimed(nonsense, SystemTime::now()).unwrap_err();
            assert!(matches!(refused, AccountError::Malformed(_)), "{nonsense}");
        }
    }

    #[test]
    fn a_token_that_says_something_wrong_of_itself_needs_no_review() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let with = |changes: serde_json::Value| {
            let mut payload = serde_json::json!({"aud": ["weft"], "exp": 1_003_600, "iat": 1_000_000,
                "kubernetes.io": {"namespace": "shop", "pod": {"name": "users-1", "uid": "0a1b"}},
                "sub": "system:serviceaccount:shop:users"});
            payload.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let payload = BASE64_URL_SAFE_NO_PAD.encode(payload.to_string());
            claimed(&format!("e30.{payload}.c2ln"), now).map(|name| name.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(with(serde_json::json!({})).unwrap(), "users.shop");
        assert_eq!(with(serde_json::json!({"aud": "weft", "exp": 999_990})).unwrap(), "users.shop");
        for (changes, why) in [
            (serde_json::json!({"aud": ["https://kubernetes.default.svc"]}), "not for the audience `weft`"),
            (serde_json::json!({"aud": null}), "not for the audience `weft`"),
            (serde_json::json!({"exp": 999_900}), "has expired"),
            (serde_json::json!({"exp": null}), "has expired"),
            (serde_json::json!({"kubernetes.io": {"namespace": "shop"}}), "not bound to a pod"),
            (serde_json::json!({"kubernetes.io": null}), "not bound to a pod"),
            (serde_json::json!({"sub": "system:node:node-1"}), "somebody else"),
            (serde_json::json!({"sub": "spiffe://weft.test/ns/shop/sa/users"}), "somebody else"),
            (serde_json::json!({"sub": "system:serviceaccount:shop"}), "is not a service account"),
            (serde_json::json!({"sub": "system:serviceaccount:shop:a.b"}), "can't be an identity"),
        ] {
            let refused = with(changes.clone()).unwrap_err();
            assert!(refused.contains(why), "{changes}: {refused}");
        }
    }

    #[test]
    fn a_token_that_an_api_server_has_made_is_read() {
        assert_eq!(claimed(&token_of("shop", "users", "x"), SystemTime::now()).unwrap().as_str(), "users.shop");
    }
}
