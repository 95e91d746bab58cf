//! The CA is kept in a Secret: a control plane that starts anew, on whatever node, has the same.

use std::{collections::BTreeMap, path::Path};

use anyhow::bail;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Error,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{sleep, timeout};
use weft_mesh::identity::TrustDomain;

use super::{PAUSE, TIMEOUT};
use crate::{
    authority::{ca::Ca, files},
    kubernetes::names::{NAMESPACE, SECRET_CA as NAME},
};

/// Fills the state folder with the CA in the Secret, or makes both.
pub(super) async fn keep(client: &Client, state_dir: &Path, trust_domain: &TrustDomain) -> anyhow::Result<()> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    loop {
        match timeout(TIMEOUT, once(&api, state_dir, trust_domain)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Trouble::Final(error))) => return Err(error),
            Ok(Err(Trouble::Passing(error))) => {
                tracing::warn!(error = %format_args!("{error:#}"), "the Secret {NAME} can't be read or made yet");
            }
            Err(_) => tracing::warn!("the API server does not answer"),
        }
        sleep(PAUSE).await;
    }
}

enum Trouble {
    /// It may go away by itself.
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

async fn once(api: &Api<Secret>, state_dir: &Path, trust_domain: &TrustDomain) -> Result<(), Trouble> {
    let passing = |error: Error| Trouble::Passing(error.into());
    if let Some(secret) = api.get_opt(NAME).await.map_err(passing)? {
        return restore(secret, state_dir).map_err(Trouble::Final);
    }
    // The folder is empty at the first start in a cluster. If it is not, its CA is the one to keep.
    Ca::open_or_create(state_dir, trust_domain).map_err(|error| Trouble::Final(error.into()))?;
    let made = files::read(state_dir).map_err(|error| Trouble::Final(error.into()))?;
    let data: BTreeMap<String, ByteString> =
        made.into_iter().map(|(file, text)| (file.to_owned(), ByteString(text.into_bytes()))).collect();
    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
    let secret = Secret { metadata, data: Some(data), type_: Some("weft.dev/ca".to_owned()), ..Secret::default() };
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!("made the CA, and the Secret {NAME} in the namespace {NAMESPACE}");
            Ok(())
        }
        // Another control plane was faster: its CA is the one.
        Err(Error::Api(status)) if status.is_already_exists() => {
            Err(Trouble::Passing(anyhow::anyhow!("another control plane has just made it")))
        }
        Err(error) => Err(passing(error)),
    }
}

fn restore(secret: Secret, state_dir: &Path) -> anyhow::Result<()> {
    let mut data = secret.data.unwrap_or_default();
    for file in files::names() {
        let Some(ByteString(bytes)) = data.remove(file) else {
            bail!(
                "the Secret {NAME} in the namespace {NAMESPACE} has no `{file}`: restore it, or delete the Secret to start \
                 with a new CA"
            );
        };
        let text = String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("the Secret {NAME}: `{file}` is not text"))?;
        files::write(state_dir, file, &text)?;
    }
    Ok(())
}
