//! Reviews of tokens by the API server.

use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::kubernetes::{
    accounts::{Review, Tokens},
    names::TOKEN_AUDIENCE,
};

/// How many reviews may run at once. Anybody who reaches the control plane can cause one.
const AT_ONCE: usize = 32;
/// How long one may take, with the wait for its turn.
const WAIT: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Reviews {
    client: Client,
    turns: Semaphore,
}

impl Reviews {
    pub(super) fn new(client: Client) -> Self {
        Self { client, turns: Semaphore::new(AT_ONCE) }
    }

    async fn ask(&self, token: &str) -> anyhow::Result<Review> {
        let until = Instant::now() + WAIT;
        let _turn = timeout_at(until, self.turns.acquire()).await.context("too many tokens are being reviewed")??;
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let asked = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answered = timeout_at(until, api.create(&params, &asked)).await.context("it did not answer in time")?;
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

impl Tokens for Reviews {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
        Box::pin(self.ask(token))
    }
}
