//! Parts of Kubernetes itself go away under load.

use std::{thread, time::Duration};

use serde_json::json;
use weft_tests::skip;

use super::{LIMIT, cluster::pod, shop};

#[test]
fn no_call_fails_while_the_api_server_hangs_or_is_killed() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    let Some(load) = cluster.load("shop", "shop.products.v1.Products/Get", r#"{"id":"teapot"}"#, 300, 40) else {
        return skip("ghz is not installed: run tests/honest/install");
    };
    if !cluster.part(&["signal", "STOP", "apiserver"]) {
        return skip("the API server of another cluster is left alone");
    }
    thread::sleep(Duration::from_secs(8));
    cluster.part(&["signal", "CONT", "apiserver"]);
    thread::sleep(Duration::from_secs(2));
    cluster.part(&["signal", "KILL", "apiserver"]);
    thread::sleep(Duration::from_secs(8));
    cluster.part(&["restart", "apiserver"]);
    cluster.until("the API server is back", LIMIT, || cluster.try_kubectl(&["get", "--raw", "/readyz"], "").map(drop));
    let told = load.end();
    weft_tests::result(&format!("the API server hung and was killed under load: {told}"));
    assert_eq!(told.failed, 0, "{told}");
    // The control plane has gone on, and learns what is new.
    let new = pod("shop", "after-the-api-server", json!({}), json!({})).to_string();
    cluster.until("a pod is made", LIMIT, || cluster.try_kubectl(&["apply", "-f", "-"], &new).map(drop));
    cluster.until("it has its identity", LIMIT, || {
        let ready = [
            "-n",
            "shop",
            "get",
            "pod",
            "after-the-api-server",
            "-o",
            "jsonpath={.status.initContainerStatuses[*].ready}",
        ];
        let ready = cluster.kubectl(&ready);
        if ready.contains("true") { Ok(()) } else { Err(ready) }
    });
    cluster.kubectl(&["-n", "shop", "delete", "pod", "after-the-api-server", "--wait=false"]);
    cluster.kubectl(&["-n", "shop", "rollout", "restart", "deployment/products"]);
    cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/products", "--timeout=240s"]);
    cluster.until("a call succeeds", LIMIT, || {
        cluster.call("shop", "keyboard", &["call", "shop.products.v1.Products/Get", r#"{"id":"teapot"}"#]).map(drop)
    });
}
