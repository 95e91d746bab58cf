//! Against API servers that answer as a test wants.

use std::{convert::Infallible, future::pending, sync::Arc};

use http::{Method, Request, Response, StatusCode, header};
use kube::{Client, client::Body};
use serde_json::{Value, json};

use super::{
    api::Api,
    check, control_plane,
    finding::Level,
    objects::Plain,
    pods::{Pod, Sidecar},
};

/// What an API server answers: a status with an object.
type Answer = (u16, Value);

/// An API server. If there is no answer to a request, none comes.
pub(super) fn api(answer: impl Fn(&Request<Body>) -> Option<Answer> + Send + Sync + 'static) -> Api {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer(&request);
        async move {
            let Some((status, body)) = answer else { return pending().await };
            let mut response = Response::new(Body::from(body.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            Ok::<_, Infallible>(response)
        }
    });
    Api::of(Client::new(service, "default"))
}

/// A pod of the namespace `shop` that has a sidecar.
pub(super) fn pod(name: &str, ip: [u8; 4]) -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ip: Some(ip.into()),
        account: name.to_owned(),
        sidecar: Sidecar::Has("1".to_owned()),
        not_ready: None,
        port: None,
    }
}

fn missing() -> Option<Answer> {
    Some((404, json!({"kind": "Status", "reason": "NotFound", "message": "there is none"})))
}

fn version() -> Option<Answer> {
    Some((200, json!({"gitVersion": "v1.34.4", "major": "1", "minor": "34"})))
}

#[tokio::test(start_paused = true)]
async fn before_the_installation_rights_are_checked() {
    let with_rights = |may: fn(&str) -> bool| {
        api(move |request| match (request.method(), request.uri().path()) {
            (&Method::GET, "/version") => version(),
            (&Method::POST, path) => Some((201, json!({"status": {"allowed": may(path)}}))),
            _ => missing(),
        })
    };
    let findings = check::run(Ok(with_rights(|_| true))).await;
    let found: Vec<_> = findings.0.iter().map(|finding| (finding.check, finding.level)).collect();
    assert_eq!(
        found,
        [("api-server", Level::Good), ("control-plane", Level::Error), ("rights", Level::Good)],
        "{findings:?}"
    );
    assert!(findings.0[1].to_do.as_ref().unwrap().contains("weft install | kubectl apply"), "{findings:?}");
    let findings = check::run(Ok(with_rights(|_| false))).await;
    let rights = findings.0.last().unwrap();
    assert_eq!((rights.check, rights.level), ("rights", Level::Error));
    let lacks = |right: &str| rights.objects.iter().any(|object| object == right);
    assert!(lacks("create deployments.apps in weft") && lacks("patch namespaces"), "{rights:?}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_says_nothing_is_not_awaited_for_ever() {
    let findings = check::run(Ok(api(|_| None))).await;
    assert_eq!(findings.0.len(), 1);
    assert!(findings.has_errors() && findings.0[0].found.contains("nothing came within 10s"), "{findings:?}");
    // It falls silent later.
    let later = api(|request| match request.uri().path() {
        "/version" => version(),
        "/api/v1/namespaces/weft" => Some((200, json!({"metadata": {"name": "weft"}}))),
        path if path.ends_with("/deployments/control") => {
            Some((200, json!({"metadata": {"name": "control"}, "status": {"availableReplicas": 1}})))
        }
        _ => None,
    });
    let findings = check::run(Ok(later)).await;
    let not_looked_at = |check: &str| {
        findings.0.iter().any(|finding| finding.check == check && finding.found.contains("not looked at"))
    };
    for check in ["ca", "namespaces", "webhook", "trust", "pods"] {
        assert!(not_looked_at(check), "{check}: {findings:?}");
    }
}

#[tokio::test]
async fn large_objects_come_in_smaller_pages() {
    let large = api(|request| {
        let query = request.uri().query().unwrap();
        let limit: usize = query.strip_prefix("limit=").unwrap().split('&').next().unwrap().parse().unwrap();
        // A page of more than fifteen such objects is too large.
        let (size, next) = match query.contains("continue=") {
            false if limit > 15 => ((1 << 20) + 1, "x"),
            false => (1, "more of it"),
            true => (1, ""),
        };
        let item = json!({"metadata": {"name": "a"}, "filler": "x".repeat(size)});
        Some((200, json!({"metadata": {"continue": next}, "items": [item]})))
    });
    let listed = large.list("/api/v1/pods", "", |object: Plain| Some(object.metadata.name)).await.unwrap();
    assert_eq!((listed.items, listed.is_cut), (vec!["a".to_owned(), "a".to_owned()], false));
}

#[tokio::test]
async fn a_list_without_an_end_ends() {
    let endless = api(|_| Some((200, json!({"metadata": {"continue": "x"}, "items": []}))));
    let listed = endless.list("/api/v1/pods", "", |object: Plain| Some(object)).await.unwrap();
    assert!(listed.is_cut && listed.items.is_empty());
}

/// The proxy of the API server passes on by which name it was called.
#[tokio::test]
async fn the_dashboard_is_called_by_a_name_of_its_own() {
    let sidecar = json!({"address": "10.0.0.1", "spiffe_id": "a", "connected": true, "connected_seconds": 1,
        "follows": 0, "unsent": 0, "endpoints": []});
    let proxy = api(move |request| {
        let path = request.uri().path();
        assert_eq!(path, "/api/v1/namespaces/weft/services/control:dashboard/proxy/api/sidecars");
        if request.headers().get(header::HOST).is_none_or(|host| host != "control.weft.svc") {
            return Some((421, json!("this dashboard is not called so")));
        }
        let is_second = request.uri().query().unwrap().contains("&after=10.0.0.1%2Ca");
        let next = if is_second { Value::Null } else { json!("10.0.0.1,a") };
        Some((200, json!({"sidecars": [sidecar], "next": next})))
    });
    assert_eq!(control_plane::sidecars(&proxy).await.unwrap().len(), 2);
}
