//! The contract `shop.auth.v1.Auth`.

use std::time::SystemTime;

use tonic::{Request, Response, Status};
use weft_contracts::shop::auth::v1::{
    self as api, IssueTokenRequest, IssueTokenResponse, JwksRequest, JwksResponse, ValidateRequest, ValidateResponse,
};
use weft_kit::status::{self, Violations};

use crate::{email, tokens::Tokens};

const MAX_USER_ID_CHARS: usize = 64;

pub(crate) struct Auth {
    tokens: Tokens,
}

impl Auth {
    pub(crate) fn new(tokens: Tokens) -> Self {
        Self { tokens }
    }
}

#[tonic::async_trait]
impl api::auth_server::Auth for Auth {
    async fn validate(&self, request: Request<ValidateRequest>) -> Result<Response<ValidateResponse>, Status> {
        let email = email::normalize(&request.into_inner().email).map_err(|why| status::invalid("email", why))?;
        Ok(Response::new(ValidateResponse { email }))
    }

    async fn issue_token(&self, request: Request<IssueTokenRequest>) -> Result<Response<IssueTokenResponse>, Status> {
        let user_id = request.into_inner().user_id;
        let mut violations = Violations::new();
        let chars = user_id.chars().count();
        violations.check((1..=MAX_USER_ID_CHARS).contains(&chars), "user_id", "must have 1 to 64 characters");
        violations.finish()?;
        let (token, expires_at) = self.tokens.issue(&user_id, SystemTime::now()).map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "a token could not be signed");
            Status::internal("the token could not be signed")
        })?;
        Ok(Response::new(IssueTokenResponse { token, expires_at: Some(expires_at.into()) }))
    }

    async fn jwks(&self, _: Request<JwksRequest>) -> Result<Response<JwksResponse>, Status> {
        Ok(Response::new(JwksResponse { jwks_json: self.tokens.jwks_json().to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use api::auth_server::Auth as _;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_malformed_address_is_a_violation_of_its_field() {
        let auth = Auth::new(Tokens::with_new_key().unwrap());
        let validate = |email: &str| auth.validate(Request::new(ValidateRequest { email: email.to_owned() }));
        assert_eq!(validate("ada@EXAMPLE.com").await.unwrap().into_inner().email, "ada@example.com");
        let refused = validate("ada").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let violations = status::violations(&refused);
        assert_eq!((violations[0].field.as_str(), violations[0].description.as_str()), ("email", "has no @"));
    }

    #[tokio::test]
    async fn a_token_needs_a_user() {
        let auth = Auth::new(Tokens::with_new_key().unwrap());
        let issue = |user_id: &str| auth.issue_token(Request::new(IssueTokenRequest { user_id: user_id.to_owned() }));
        assert_eq!(issue("ada").await.unwrap().into_inner().token.split('.').count(), 3);
        assert_eq!(issue("").await.unwrap_err().code(), Code::InvalidArgument);
    }
}
