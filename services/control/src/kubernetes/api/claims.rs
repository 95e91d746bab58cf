//! The claims are kept in a ConfigMap: a control plane that starts anew, on whatever node, knows what belongs to whom.
//! Without it, contracts would belong to the pods that come back first.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{sleep, timeout};

use super::{MANAGER, PAUSE, TIMEOUT, lease::Held};
use crate::{
    claims::store::{Backup, Store},
    kubernetes::names::NAMESPACE,
};

const NAME: &str = "weft-claims";
const KEY: &str = "claims.json";
/// The API server accepts no more in one object (`MaxSecretSize` of `k8s.io/kubernetes/pkg/apis/core`).
const MOST_BYTES: usize = 1024 * 1024;

/// Fills the store with the claims in the ConfigMap. If there is none, the store stays as it is. Waits for the API server
/// for as long as it takes: an empty store would give away what belongs to others.
pub(super) async fn restore(client: &Client, store: &Store) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    loop {
        match timeout(TIMEOUT, api.get_opt(NAME)).await {
            Ok(Ok(Some(found))) => return put_back(found, store),
            Ok(Ok(None)) => {
                tracing::info!("there is no ConfigMap {NAME} in the namespace {NAMESPACE} yet: no claims are known");
                return Ok(());
            }
            Ok(Err(error)) => tracing::warn!(%error, "the ConfigMap {NAME} can't be read yet"),
            Err(_) => tracing::warn!("the API server does not answer"),
        }
        sleep(PAUSE).await;
    }
}

fn put_back(found: ConfigMap, store: &Store) -> anyhow::Result<()> {
    let what = || {
        format!(
            "the ConfigMap {NAME} in the namespace {NAMESPACE}: restore it, or delete it to give contracts to those that \
             claim them first"
        )
    };
    let Some(text) = found.data.unwrap_or_default().remove(KEY) else {
        bail!("there is no `{KEY}` in {}", what());
    };
    store.restore(&text).with_context(what)
}

/// The ConfigMap.
pub(super) struct InConfigMap {
    api: Api<ConfigMap>,
    /// Whether this control plane may write, if there can be several.
    held: Option<Held>,
}

impl InConfigMap {
    pub(super) fn new(client: Client, held: Option<Held>) -> Self {
        Self { api: Api::namespaced(client, NAMESPACE), held }
    }

    async fn write(&self, text: &str) -> anyhow::Result<()> {
        ensure!(
            text.len() <= MOST_BYTES,
            "the claims have {} bytes, and the ConfigMap {NAME} may have {MOST_BYTES}: release those that nobody needs",
            text.len()
        );
        let is_ours = self.held.as_ref().is_none_or(Held::is_sure);
        ensure!(is_ours, "the Lease is not renewed, so another control plane may keep them now");
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match self.api.get_opt(NAME).await? {
            Some(mut found) => {
                let before = found.data.get_or_insert_default().insert(KEY.to_owned(), text.to_owned());
                if before.as_deref() != Some(text) {
                    // Fails if it has changed since it was read.
                    self.api.replace(NAME, &params, &found).await?;
                }
            }
            None => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let data = Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())]));
                self.api.create(&params, &ConfigMap { metadata, data, ..ConfigMap::default() }).await?;
            }
        }
        Ok(())
    }
}

impl Backup for InConfigMap {
    fn put<'a>(&'a self, text: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move { timeout(TIMEOUT, self.write(text)).await.context("the API server does not answer")? })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::{BodyExt as _, Full};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const CLAIMS: &str = r#"{"pinned":{"shop.users.v1.Users":"spiffe://weft.test/ns/shop/sa/users"}}"#;

    /// An API server with one ConfigMap at most, which fails so often at first.
    #[derive(Default)]
    struct Fake {
        fails: usize,
        map: Option<Value>,
        asked: Vec<Method>,
    }

    fn client(fake: &Arc<Mutex<Fake>>) -> Client {
        let fake = Arc::clone(fake);
        let serve = tower::service_fn(move |request: Request<Body>| {
            let fake = Arc::clone(&fake);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut fake = fake.lock().unwrap();
                fake.asked.push(head.method.clone());
                assert!(head.uri.path().starts_with("/api/v1/namespaces/weft/configmaps"), "{}", head.uri);
                let refuse = |code: StatusCode, reason: &str| {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                        "reason": reason, "code": code.as_u16()});
                    (code, status)
                };
                let (code, answer) = if fake.fails > 0 {
                    fake.fails -= 1;
                    refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
                } else if head.method == Method::GET {
                    let missing = || refuse(StatusCode::NOT_FOUND, "NotFound");
                    fake.map.clone().map_or_else(missing, |map| (StatusCode::OK, map))
                } else {
                    let map: Value = serde_json::from_slice(&body).unwrap();
                    fake.map = Some(map.clone());
                    (StatusCode::OK, map)
                };
                let answer = Full::new(bytes::Bytes::from(answer.to_string()));
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        Client::new(serve, NAMESPACE)
    }

    fn map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "labels": {"kept": "yes"}},
            "data": data})
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &"weft.test".parse().unwrap()).unwrap();
        (dir, store)
    }

    #[tokio::test(start_paused = true)]
    async fn claims_are_restored_before_the_start_however_long_the_api_server_takes() {
        let (_dir, store) = store();
        let fake = Fake { fails: 5, map: Some(map(json!({KEY: CLAIMS}))), ..Fake::default() };
        let fake = Arc::new(Mutex::new(fake));
        restore(&client(&fake), &store).await.unwrap();
        let (saved, _) = store.load().unwrap();
        assert_eq!(saved.pinned["shop.users.v1.Users"].as_str(), "users.shop");
        assert_eq!(fake.lock().unwrap().asked.len(), 6);
    }

    #[tokio::test]
    async fn what_is_no_store_of_claims_stops_the_start() {
        for (data, why) in [(json!({}), "no `claims.json`"), (json!({KEY: "{"}), "claims.json: EOF")] {
            let (_dir, store) = store();
            let fake = Arc::new(Mutex::new(Fake { map: Some(map(data)), ..Fake::default() }));
            let error = format!("{:#}", restore(&client(&fake), &store).await.unwrap_err());
            assert!(error.contains(why) && error.contains("ConfigMap weft-claims"), "{error}");
            assert_eq!(store.text().unwrap(), None, "nothing of it is used");
        }
    }

    #[tokio::test]
    async fn claims_are_written_into_the_config_map() {
        let (_dir, store) = store();
        let fake = Arc::<Mutex<Fake>>::default();
        // At the first start in a cluster.
        restore(&client(&fake), &store).await.unwrap();
        assert_eq!(store.text().unwrap(), None);
        let backup = InConfigMap::new(client(&fake), None);
        backup.put("one").await.unwrap();
        assert_eq!(fake.lock().unwrap().map.as_ref().unwrap()["data"], json!({KEY: "one"}));
        let found = map(json!({KEY: "one", "other": "is left alone"}));
        fake.lock().unwrap().map = Some(found);
        backup.put("two").await.unwrap();
        backup.put("two").await.unwrap();
        let fake = fake.lock().unwrap();
        let map = fake.map.as_ref().unwrap();
        assert_eq!(map["data"], json!({KEY: "two", "other": "is left alone"}));
        assert_eq!(map["metadata"]["labels"]["kept"], "yes");
        use Method as M;
        assert_eq!(fake.asked, [M::GET, M::GET, M::POST, M::GET, M::PUT, M::GET], "what is there is not written again");
    }

    #[tokio::test]
    async fn claims_that_do_not_fit_leave_the_last_ones() {
        let fake = Arc::new(Mutex::new(Fake { map: Some(map(json!({KEY: "one"}))), ..Fake::default() }));
        let error = InConfigMap::new(client(&fake), None).put(&"x".repeat(MOST_BYTES + 1)).await.unwrap_err();
        assert!(error.to_string().contains("release those that nobody needs"), "{error}");
        assert!(fake.lock().unwrap().asked.is_empty());
    }
}
