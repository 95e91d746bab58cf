//! Who a pod is: its service account, proven by a token that was made for Weft only.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    names::{ServiceName, shown},
};

use super::names::TOKEN_AUDIENCE;

/// The longest token that is sent to the API server.
const TOKEN_BYTES: usize = 16 * 1024;

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
    /// The API server did not answer.
    #[error("the API server could not be asked about the token")]
    Unanswered(#[source] anyhow::Error),
}

/// The identity that a token of a service account proves.
pub(crate) async fn verify(
    tokens: &dyn Tokens,
    trust_domain: &TrustDomain,
    token: &str,
) -> Result<SpiffeId, AccountError> {
    look(token)?;
    let review = tokens.review(token).await.map_err(AccountError::Unanswered)?;
    judge(trust_domain, review)
}

/// Refuses what the API server would refuse anyway, so that it is not asked.
fn look(token: &str) -> Result<(), AccountError> {
    if token.len() > TOKEN_BYTES {
        return Err(AccountError::Malformed("it is too long"));
    }
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let parts: Vec<&str> = token.split('.').collect();
    if parts.len() != 3 || parts.iter().any(|part| part.is_empty() || !part.bytes().all(is_base64)) {
        return Err(AccountError::Malformed("it is not a JWT"));
    }
    Ok(())
}

fn judge(trust_domain: &TrustDomain, review: Review) -> Result<SpiffeId, AccountError> {
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
    let account = review.username.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    let Some((namespace, name)) = account else {
        return Err(AccountError::Refused(format!("`{}` is not a service account", shown(&review.username))));
    };
    let service = ServiceName::new(name, namespace).map_err(|_| AccountError::Name(shown(&review.username)))?;
    Ok(SpiffeId::of_service(trust_domain, &service))
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

    struct Says(Review);

    impl Tokens for Says {
        fn review<'a>(&'a self, _: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
            let review = self.0.clone();
            Box::pin(async move { Ok(review) })
        }
    }

    async fn of(review: Review) -> Result<String, String> {
        let domain = "weft.test".parse().unwrap();
        let verified = verify(&Says(review), &domain, "e30.e30.c2ln").await;
        verified.map(|id| id.to_string()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_token_for_weft_that_is_bound_to_a_pod_proves_its_service_account() {
        assert_eq!(of(good()).await.unwrap(), "spiffe://weft.test/ns/shop/sa/users");
        let error = "token has expired".to_owned();
        let why = of(Review { is_authenticated: false, error, ..good() }).await.unwrap_err();
        assert!(why.ends_with("token has expired"), "{why}");
        for audiences in [vec![], vec!["https://kubernetes.default.svc".to_owned()]] {
            let why = of(Review { audiences, ..good() }).await.unwrap_err();
            assert!(why.contains("not for the audience `weft`"), "{why}");
        }
        for extra in [BTreeMap::new(), BTreeMap::from([(UID.to_owned(), vec![String::new()])])] {
            let why = of(Review { extra, ..good() }).await.unwrap_err();
            assert!(why.contains("not bound to a pod"), "{why}");
        }
        for username in ["system:node:node-1", "system:serviceaccount:shop", "admin"] {
            let why = of(Review { username: username.into(), ..good() }).await.unwrap_err();
            assert!(why.contains("is not a service account"), "{why}");
        }
        // Kubernetes allows dots in the names of service accounts.
        let why = of(Review { username: "system:serviceaccount:shop:a.b".into(), ..good() }).await.unwrap_err();
        assert!(why.contains("a.b can't be an identity"), "{why}");
    }

    #[tokio::test]
    async fn the_api_server_is_not_asked_about_what_is_no_token() {
        struct Never;
        impl Tokens for Never {
            fn review<'a>(&'a self, _: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
                panic!("it was asked")
            }
        }
        let domain = "weft.test".parse().unwrap();
        for nonsense in ["", "a.b", "a.b.c.d", "a..c", "a.b.c\n", "a.b.{}", &format!("a.{}.c", "b".repeat(TOKEN_BYTES))]
        {
            let refused = verify(&Never, &domain, nonsense).await.unwrap_err();
            assert!(matches!(refused, AccountError::Malformed(_)), "{nonsense}");
        }
    }
}
