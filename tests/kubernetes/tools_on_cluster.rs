//! `weft cluster check`, `weft cluster status`, `weft uninstall` and `weft upgrade` against a real cluster.

use serde_json::{Value, json};

use super::{
    LIMIT,
    cluster::{Cluster, pod},
    shop, whole_shop,
};

/// What a command said: whether it succeeded, its output and its errors.
fn told(cluster: &Cluster, args: &[&str]) -> (bool, String, String) {
    let output = cluster.weft_there(args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Whether there is no error, and what is found.
fn findings(cluster: &Cluster) -> (bool, Vec<Value>) {
    let (is_good, out, errors) = told(cluster, &["cluster", "check", "--json"]);
    let all: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out} {errors}"));
    (is_good, all["findings"].as_array().cloned().expect("it has findings"))
}

#[test]
fn before_the_installation_a_user_sees_what_is_missing() {
    let Some(cluster) = shop() else { return };
    let Some(before) = cluster.before.get() else {
        return eprintln!("not looked at: the cluster had Weft already");
    };
    let all: Value = serde_json::from_slice(&before.stdout).unwrap_or_else(|_| panic!("{before:?}"));
    let has = |check: &str, level: &str| {
        let mut findings = all["findings"].as_array().into_iter().flatten();
        findings.any(|finding| finding["check"] == check && finding["level"] == level)
    };
    assert!(has("api-server", "good") && has("control-plane", "error") && has("rights", "good"), "{all}");
    assert!(!before.status.success(), "{before:?}");
    assert!(all.to_string().contains("weft install | kubectl apply"), "{all}");
}

#[test]
fn a_user_sees_what_is_wrong_and_can_not_uninstall_under_running_pods() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    cluster.until("all is well", LIMIT, || {
        let (is_good, all) = findings(cluster);
        if is_good { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let (_, all) = findings(cluster);
    let good: Vec<&str> = all.iter().filter(|of| of["level"] == "good").filter_map(|of| of["check"].as_str()).collect();
    for check in
        ["api-server", "clock", "control-plane", "version", "ca", "webhook", "trust", "pods", "mesh", "services"]
    {
        assert!(good.contains(&check), "{check}: {all:?}");
    }

    // Each sidecar is there, and in sync.
    cluster.until("all sidecars are in sync", LIMIT, || {
        let (is_good, out, errors) = told(cluster, &["cluster", "status", "--json", "--namespace", "shop"]);
        assert!(is_good, "{errors}");
        let table: Value = serde_json::from_str(&out).expect("it is JSON");
        let rows = table["sidecars"].as_array().cloned().unwrap_or_default();
        for service in ["auth", "notifications", "users", "products", "orders", "web"] {
            let start = format!("shop/{service}-");
            let of: Vec<&Value> =
                rows.iter().filter(|row| row["pod"].as_str().is_some_and(|pod| pod.starts_with(&start))).collect();
            let is_well = |row: &&Value| {
                row["in_sync"] == true
                    && row["ready"] == true
                    && row["endpoints"][0]["service"] == format!("{service}.shop")
                    && row["endpoints"][0]["health"] == "up"
            };
            if of.is_empty() || !of.iter().all(is_well) {
                return Err(format!("{service}: {out}"));
            }
        }
        Ok(())
    });
    let (_, text, _) = told(cluster, &["cluster", "status"]);
    assert!(text.starts_with("POD ") && text.contains("shop/users-"), "{text}");

    // A pod that is older than the label of its namespace.
    cluster.kubectl(&["create", "namespace", "bare"]);
    let plain = pod("bare", "plain", json!({}), json!({})).to_string();
    cluster.until("the pod is made", LIMIT, || cluster.try_kubectl(&["create", "-f", "-"], &plain).map(drop));
    cluster.kubectl(&["label", "namespace", "bare", "weft.dev/inject=enabled"]);
    let (is_good, all) = findings(cluster);
    let lacks = |of: &&Value| of["check"] == "pods" && of["level"] == "error" && of["objects"] == json!(["bare/plain"]);
    assert!(!is_good && all.iter().any(|of| lacks(&of)), "{all:?}");
    cluster.kubectl(&["delete", "namespace", "bare"]);

    let (is_good, out, errors) = told(cluster, &["uninstall"]);
    assert!(!is_good && out.is_empty() && errors.contains("shop/"), "{out} {errors}");
    let (is_good, out, _) = told(cluster, &["uninstall", "--force"]);
    assert!(is_good && out.starts_with("apiVersion: admissionregistration.k8s.io/v1"), "{out}");

    let (is_good, out, errors) = told(cluster, &["upgrade"]);
    assert!(is_good && errors.is_empty(), "{errors}");
    assert_eq!(out, cluster.weft(&["install"], ""), "it prints the same");
    let (is_good, out, errors) = told(cluster, &["upgrade", "--set", "trust_domain=other.example"]);
    assert!(!is_good && out.is_empty() && errors.contains("allowed: weft.local"), "{errors}");
    let (is_good, _, errors) = told(cluster, &["upgrade", "--set", "sample_ratio=1"]);
    assert!(is_good && errors.contains("+ sample_ratio: 1"), "{errors}");
}

/// Mostly a controller makes the pod, and nobody sees the webhook's warning.
#[test]
fn a_pod_that_is_left_alone_has_an_event_that_says_why() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let mut on_host = pod("default", "on-the-host", json!({"weft.dev/inject": "enabled"}), json!({}));
    on_host["spec"]["hostNetwork"] = json!(true);
    cluster.try_kubectl(&["create", "-f", "-"], &on_host.to_string()).expect("it is made all the same");
    let events = ["-n", "default", "get", "events.events.k8s.io", "-o", "json"];
    cluster.until("its owner is told", LIMIT, || {
        let all: Value = serde_json::from_str(&cluster.kubectl(&events)).expect("it is JSON");
        let is_it = |event: &&Value| event["reason"] == "NoSidecar" && event["regarding"]["name"] == "on-the-host";
        match all["items"].as_array().into_iter().flatten().find(is_it) {
            Some(event) if event["note"].as_str().is_some_and(|note| note.contains("hostNetwork")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let (_, all) = findings(cluster);
    let says_why = |of: &Value| {
        of["level"] == "note"
            && of["objects"].as_array().is_some_and(|pods| pods.contains(&json!("default/on-the-host")))
    };
    assert!(all.iter().any(says_why), "{all:?}");
    cluster.kubectl(&["-n", "default", "delete", "pod", "on-the-host", "--wait=false"]);
}

/// Whoever pipes it into kubectl may have another way to the cluster.
#[test]
fn without_a_cluster_the_removal_is_printed_with_a_warning() {
    let Some(cluster) = shop() else { return };
    let (is_good, out, errors) = told(cluster, &["uninstall", "--context", "no-such-context", "--timeout", "5s"]);
    assert!(is_good && out.starts_with("apiVersion: admissionregistration.k8s.io/v1"), "{out}");
    assert!(errors.contains("can't be looked at") && errors.contains("no-such-context"), "{errors}");
}
