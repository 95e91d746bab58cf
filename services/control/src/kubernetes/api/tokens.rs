//! Reviews of tokens by the API server. Who may cause how many is decided in [`crate::kubernetes::reviews`].

use anyhow::Context;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use super::TIMEOUT;
use crate::kubernetes::{
    accounts::{Review, Tokens},
    names::TOKEN_AUDIENCE,
};

/// See the module.
pub(super) struct Reviewer(pub(super) Client);

impl Reviewer {
    async fn ask(&self, token: &str) -> anyhow::Result<Review> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let api: Api<TokenReview> = Api::all(self.0.clone());
        let asked = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answered = timeout(TIMEOUT, api.create(&params, &asked)).await.context("it did not answer in time")?;
        let status = answered.context("it refused the review")?.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        Ok(Review {
            is_authenticated: status.authenticated.unwrap_or(false),
            username: user.username.unwrap_or_default(),
            audiences: status.audiences.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
            error: status.error.unwrap_or_default(),
        })
    }
}

impl Tokens for Reviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
        Box::pin(self.ask(token))
    }
}
