//! The one thing that is written: the ConfigMap of `weft contracts push`.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use weft_mesh::names::{LABEL, is_label, shown};

use super::api::{Api, Trouble};

/// Who writes, for the API server.
const MANAGER: &str = "weft-contracts";

/// Writes a ConfigMap by server-side apply, into the namespace of the kubeconfig's context if it names none. Returns the
/// namespace.
///
/// # Errors
/// The namespace of the context is no name of a namespace, or the ConfigMap can't be written.
pub(super) async fn config_map(api: &Api, mut object: Value, is_forced: bool) -> anyhow::Result<String> {
    let metadata = &mut object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or_else(|| api.namespace()).to_owned();
    // It becomes a part of a path.
    ensure!(
        is_label(&namespace),
        "the namespace {:?} of the kubeconfig's context is no name of a namespace; allowed: {LABEL}. Or name one: -n NAMESPACE",
        shown(&namespace)
    );
    metadata["namespace"] = json!(namespace);
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}?fieldManager={MANAGER}&force={is_forced}");
    let written: Result<Value, Trouble> = api.apply(&path, &object).await;
    written
        .map_err(|trouble| with_way_out(trouble, is_forced))
        .with_context(|| format!("the ConfigMap {namespace}/{name} can't be written to {}", api.server()))?;
    Ok(namespace)
}

fn with_way_out(trouble: Trouble, is_forced: bool) -> anyhow::Error {
    let is_conflict = matches!(trouble, Trouble::Refused(409, _));
    let error = anyhow::Error::from(trouble);
    if is_conflict && !is_forced {
        error.context("another program has written it; --force writes all the same")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::api, *};
    use http::{Method, header};

    fn object() -> Value {
        json!({ "kind": "ConfigMap", "metadata": { "name": "users" }, "data": { "contracts": "a.B" } })
    }

    #[tokio::test]
    async fn a_config_map_is_applied_in_the_namespace_of_the_context() {
        let server = api(|request| {
            assert_eq!(request.method(), Method::PATCH);
            assert_eq!(request.headers()[header::CONTENT_TYPE], "application/apply-patch+yaml");
            let path = request.uri().path_and_query().unwrap().as_str();
            assert_eq!(path, "/api/v1/namespaces/default/configmaps/users?fieldManager=weft-contracts&force=false");
            Some((201, object()))
        });
        assert_eq!(config_map(&server, object(), false).await.unwrap(), "default");
    }

    /// Otherwise it may be anything that a kubeconfig has, such as another path.
    #[tokio::test]
    async fn a_namespace_that_is_none_is_told() {
        for odd in ["my ns", "a/../b", "", "Shop"] {
            let server = api(|_| panic!("nothing is written")).in_namespace(odd);
            let told = config_map(&server, object(), false).await.unwrap_err().to_string();
            let expected =
                format!("the namespace {odd:?} of the kubeconfig's context is no name of a namespace; allowed: 1 to");
            assert!(told.starts_with(&expected), "{told}");
        }
    }

    #[tokio::test]
    async fn a_refusal_says_why_and_what_helps() {
        let refusing = |status: u16, message: &'static str| api(move |_| Some((status, json!({ "message": message }))));
        let told = async |server: Api, is_forced| {
            let mut object = object();
            object["metadata"]["namespace"] = json!("shop");
            format!("{:#}", config_map(&server, object, is_forced).await.unwrap_err())
        };
        let conflict = "Apply failed with 1 conflict: conflict with \"kubectl\"";
        let said = told(refusing(409, conflict), false).await;
        let expected =
            "the ConfigMap shop/users can't be written to https://test: another program has written it; --force";
        assert!(said.starts_with(expected) && said.ends_with("conflict with \"kubectl\""), "{said}");
        let said = told(refusing(403, "you cannot patch resource \"configmaps\""), false).await;
        assert!(said.ends_with("https://test: you cannot patch resource \"configmaps\""), "{said}");
        let said = told(refusing(404, "namespaces \"shop\" not found"), false).await;
        assert!(said.ends_with("namespaces \"shop\" not found"), "{said}");
    }
}
