//! Weft on a real cluster: installed, injected, called, and with parts of it away.
//!
//! Any cluster will do. `KUBECONFIG` says which, and `WEFT_TEST_LOAD` is a command that makes image archives known to it,
//! such as `k3d image import`. Without them it is the node that `tests/kubernetes/node up` has started on this machine.

mod cluster;
mod contracts;
mod failures;
mod policy;
mod redirect;
mod several;
mod tools_on_cluster;

use std::{sync::RwLockReadGuard, time::Duration};

use serde_json::json;
use weft_tests::skip;

use self::cluster::{Cluster, pod};

/// A guard: on a busy machine, programs that are not optimised start slowly.
const LIMIT: Duration = Duration::from_secs(240);

/// The cluster with Weft and the shop on it, made by the first test that needs it.
fn shop() -> Option<&'static Cluster> {
    let cluster = Cluster::get();
    if cluster.is_none() {
        skip("there is no cluster: run `tests/kubernetes/node up` as root, or set KUBECONFIG and WEFT_TEST_LOAD");
    }
    cluster
}

/// Like [`shop`], while all of the mesh is there.
fn whole_shop() -> Option<(&'static Cluster, RwLockReadGuard<'static, ()>)> {
    shop().map(|cluster| (cluster, cluster.whole()))
}

#[test]
fn applying_again_changes_nothing() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let manifests = cluster.weft(&["install"], "");
    assert_eq!(manifests, cluster.weft(&["install"], ""), "it is rendered the same");
    let told = cluster.apply(&manifests);
    let changed: Vec<&str> = told.lines().filter(|line| !line.ends_with("serverside-applied")).collect();
    assert!(changed.is_empty(), "{told}");
    let difference = cluster.try_kubectl(&["diff", "--server-side", "-f", "-"], &manifests);
    assert!(difference.is_ok(), "{difference:?}");
    // The webhook still has the certificate that the control plane has set.
    let bundle = cluster.kubectl(&[
        "get",
        "mutatingwebhookconfiguration",
        "weft-injector",
        "-o",
        "jsonpath={.webhooks[*].clientConfig.caBundle}",
    ]);
    assert!(!bundle.trim().is_empty());
}

#[test]
fn a_call_goes_from_pod_to_pod_and_the_contract_says_who_may() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let create = ["call", "shop.users.v1.Users/Create", r#"{"name":"Ada","email":"ada@example.com"}"#];
    let called = cluster.call("shop", "keyboard", &create).expect("keyboard may");
    assert!(called.contains(r#""name": "Ada""#) || called.contains(r#""name":"Ada""#), "{called}");
    let refused = cluster.call("shop", "stranger", &create).expect_err("nobody named a stranger");
    assert!(refused.contains("PERMISSION_DENIED"), "{refused}");
}

#[test]
fn a_pod_gets_a_sidecar_where_its_namespace_says_so() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let made = |pod: &serde_json::Value| {
        cluster.try_kubectl(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &pod.to_string())
    };
    let sidecars = |made: &str| {
        let pod: serde_json::Value = serde_json::from_str(made).unwrap();
        let inits = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        inits.iter().filter(|container| container["name"] == "weft-sidecar").count()
    };
    let plain = pod("shop", "plain", json!({}), json!({}));
    assert_eq!(sidecars(&made(&plain).unwrap()), 1);
    let disabled = pod("shop", "disabled", json!({"weft.dev/inject": "disabled"}), json!({}));
    assert_eq!(sidecars(&made(&disabled).unwrap()), 0);
    let elsewhere = pod("default", "elsewhere", json!({}), json!({}));
    assert_eq!(sidecars(&made(&elsewhere).unwrap()), 0);
    let one = pod("default", "one", json!({"weft.dev/inject": "enabled"}), json!({}));
    assert_eq!(sidecars(&made(&one).unwrap()), 1);
    let wrong = pod("shop", "wrong", json!({}), json!({"weft.dev/port": "many"}));
    let refused = made(&wrong).unwrap_err();
    assert!(refused.contains("weft.dev/port") && refused.contains("many"), "{refused}");
}

/// Who takes the control plane over has its rights.
#[test]
fn the_control_plane_can_change_no_more_than_its_own_certificate() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let control = ["--as", "system:serviceaccount:weft:control"];
    let injector = ["--dry-run=server", "patch", "mutatingwebhookconfiguration", "weft-injector", "--type=json", "-p"];
    let change = |patch: serde_json::Value| {
        let patch = json!([patch]).to_string();
        cluster.try_kubectl(&[&control[..], &injector[..], &[patch.as_str()]].concat(), "")
    };
    change(json!({"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"})).expect("it may change that");
    for (path, value) in [
        ("rules/0/resources/0", json!("*")),
        ("rules/0/operations/0", json!("*")),
        ("namespaceSelector", json!({})),
        ("objectSelector", json!({})),
        ("clientConfig/service/path", json!("/x")),
        ("failurePolicy", json!("Ignore")),
        ("name", json!("inject.example.com")),
    ] {
        let told = change(json!({"op": "replace", "path": format!("/webhooks/0/{path}"), "value": value}));
        assert!(told.as_ref().is_err_and(|error| error.contains("caBundle and nothing else")), "{path}: {told:?}");
    }
    let may = |verb: &str, what: &str, namespace: &str| {
        let asked = [&control[..], &["auth", "can-i", verb, what, "-n", namespace]].concat();
        cluster.try_kubectl(&asked, "").is_ok()
    };
    assert!(may("create", "configmaps/weft-trust", "shop") && may("patch", "configmaps/weft-trust", "shop"));
    assert!(!may("create", "configmaps/kube-root-ca.crt", "shop") && !may("get", "configmaps", "shop"));
    assert!(may("get", "secrets/weft-ca", "weft") && !may("get", "secrets", "weft") && !may("get", "secrets", "shop"));
}

#[test]
fn no_call_fails_while_a_deployment_is_rolled_out() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let Some(load) = cluster.load("shop", "shop.products.v1.Products/Get", r#"{"id":"teapot"}"#, 300, 40) else {
        return skip("ghz is not installed: run tests/honest/install");
    };
    for _ in 0..3 {
        cluster.kubectl(&["-n", "shop", "rollout", "restart", "deployment/products"]);
        cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/products", "--timeout=240s"]);
    }
    let told = load.end();
    weft_tests::result(&format!("rollouts under load: {told}"));
    assert!(told.calls > 1_000, "{told}");
    assert_eq!(told.failed, 0, "{told}");
}

#[test]
fn without_its_control_plane_the_mesh_goes_on_and_new_pods_wait() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    cluster.kubectl(&["-n", "weft", "scale", "deployment/control", "--replicas=0"]);
    cluster.kubectl(&[
        "-n",
        "weft",
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=control",
        "--timeout=240s",
    ]);
    let plain = |namespace: &str| pod(namespace, "without-control", json!({}), json!({})).to_string();
    let refused = cluster.try_kubectl(&["create", "-f", "-"], &plain("shop")).expect_err("it would have no sidecar");
    assert!(refused.contains("inject.weft.dev"), "{refused}");
    cluster.try_kubectl(&["create", "--dry-run=server", "-f", "-"], &plain("default")).expect("it needs none");
    // A restarted control plane has the same CA, and everybody is back.
    cluster.kubectl(&["-n", "weft", "scale", "deployment/control", "--replicas=1"]);
    cluster.kubectl(&["-n", "weft", "rollout", "status", "deployment/control", "--timeout=240s"]);
    cluster.until("a call succeeds again", LIMIT, || {
        cluster.call("shop", "keyboard", &["call", "shop.users.v1.Users/List", "{}"]).map(drop)
    });
}
