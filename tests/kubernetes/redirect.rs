//! Pods whose connections are redirected to their sidecars, with programs that know nothing of Weft.

use serde_json::{Value, json};
use weft_tests::{outside, skip};

use super::{
    LIMIT,
    cluster::{Cluster, container},
    whole_shop,
};

/// The namespace of the redirected pods.
const NAMESPACE: &str = "redirected";
/// That of pods outside the mesh.
const ELSEWHERE: &str = "default";

/// A server of HTTP or gRPC on all addresses. It ends, or its health check fails, when a caller says so.
fn server(namespace: &str, name: &str, speak: &str, annotations: Value, more: Value) -> Value {
    let mut app = container("app", "weft-test/app:1", &[]);
    app["env"] = json!([
        {"name": "PORT", "value": "8080"}, {"name": "HOST", "value": "0.0.0.0"}, {"name": "SPEAK", "value": speak},
    ]);
    app["ports"] = json!([{"name": if speak == "http1" { "http" } else { "grpc" }, "containerPort": 8080}]);
    app.as_object_mut().expect("a table").extend(more.as_object().expect("a table").clone());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}, "annotations": annotations},
        "spec": {"serviceAccountName": if namespace == NAMESPACE { name } else { "default" }, "containers": [app]},
    })
}

/// The objects beside a pod: its service account and its Service, on port 80.
fn beside(namespace: &str, name: &str) -> [Value; 2] {
    let metadata = json!({"name": name, "namespace": namespace});
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
    ]
}

fn apply(cluster: &Cluster, objects: &[Value]) {
    for object in objects {
        cluster.until("it is applied", LIMIT, || {
            cluster.try_kubectl(&["apply", "-f", "-"], &object.to_string()).map(drop)
        });
    }
}

/// Waits until a pod is ready, or is not.
fn wait_for(cluster: &Cluster, namespace: &str, pod: &str, is_ready: bool) {
    let expected = if is_ready { "True" } else { "False" };
    cluster.until(&format!("{pod} is ready: {is_ready}"), LIMIT, || {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let status = cluster.kubectl(&["-n", namespace, "get", "pod", pod, "-o", path]);
        if status.trim() == expected {
            return Ok(());
        }
        let described = cluster.kubectl(&["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status}"]);
        let logs = cluster.try_kubectl(&["-n", namespace, "logs", pod, "-c", "weft-sidecar", "--tail=10"], "");
        Err(format!("{described}\n{logs:?}"))
    });
}

/// What `curl` says in a pod of its own, or its errors.
fn curl(cluster: &Cluster, namespace: &str, annotations: &Value, args: &[&str]) -> Result<String, String> {
    let args = [&["-sS", "--fail-with-body", "--max-time", "30"], args].concat();
    cluster.run(namespace, "default", "weft-test/curl:1", annotations, &args)
}

#[test]
fn programs_that_know_nothing_of_the_mesh_call_and_are_called_through_their_sidecars() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    if outside("curl").is_none() {
        return skip("curl is not installed");
    }
    let redirected = json!({"weft.dev/redirect": "enabled"});
    let name = json!({"name": NAMESPACE, "labels": {"weft.dev/inject": "enabled"}});
    apply(cluster, &[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": name})]);
    for (namespace, name) in [(NAMESPACE, "page"), (NAMESPACE, "calls"), (NAMESPACE, "mortal"), (ELSEWHERE, "outsider")]
    {
        apply(cluster, &beside(namespace, name));
    }
    let probes = |probe: Value| {
        let of = |more: Value| {
            let mut probe = probe.clone();
            probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            probe
        };
        json!({
            "startupProbe": of(json!({"periodSeconds": 1, "failureThreshold": 240, "timeoutSeconds": 5})),
            "readinessProbe": of(json!({"periodSeconds": 1, "timeoutSeconds": 5})),
        })
    };
    let http = probes(json!({"httpGet": {"path": "/up", "port": "http"}}));
    let grpc = probes(json!({"grpc": {"port": 8080}}));
    // As long as it accepts connections, it is well.
    let mut tcp =
        server(NAMESPACE, "mortal", "grpc", redirected.clone(), probes(json!({"tcpSocket": {"port": "grpc"}})));
    tcp["spec"]["restartPolicy"] = json!("Never");
    apply(
        cluster,
        &[
            server(NAMESPACE, "page", "http1", redirected.clone(), http),
            server(NAMESPACE, "calls", "grpc", redirected.clone(), grpc),
            tcp,
            server(ELSEWHERE, "outsider", "http1", json!({}), json!({})),
        ],
    );
    for pod in ["page", "calls", "mortal"] {
        wait_for(cluster, NAMESPACE, pod, true);
    }
    wait_for(cluster, ELSEWHERE, "outsider", true);
    let value =
        |of: &str, path: &str| cluster.kubectl(&["-n", NAMESPACE, "get", of, "-o", &format!("jsonpath={{{path}}}")]);
    let (cluster_ip, pod_ip) = (value("service/page", ".spec.clusterIP"), value("pod/page", ".status.podIP"));

    // Another test may have made the control plane start just before: for 10 s it does not say what is outside of the mesh.
    let again = ["--retry", "30", "--retry-delay", "1", "--retry-all-errors"];
    // By the name of the Service and by its cluster address, over HTTP/1.1 and HTTP/2. The service sees the caller, so the
    // mesh carried it.
    let page = format!("http://page.{NAMESPACE}/a");
    let told = curl(cluster, NAMESPACE, &redirected, &[&again[..], &[&page]].concat());
    assert!(told.as_ref().is_ok_and(|told| told.contains("/sa/default")), "{told:?}");
    let address = format!("http://{cluster_ip}/b");
    let told = curl(cluster, NAMESPACE, &redirected, &[&again[..], &["--http2-prior-knowledge", &address]].concat());
    assert!(told.as_ref().is_ok_and(|told| told.contains("/sa/default")), "{told:?}");
    // Out of the mesh, as it is: nothing is added to it.
    let out = format!("http://outsider.{ELSEWHERE}/c");
    let told = curl(cluster, NAMESPACE, &redirected, &[&again[..], &[&out]].concat());
    assert!(told.as_ref().is_ok_and(|told| told.contains("GET /c") && !told.contains("traceparent")), "{told:?}");
    let denied = json!({"weft.dev/redirect": "enabled", "weft.dev/outside": "deny"});
    let told = curl(cluster, NAMESPACE, &denied, &[&out]).expect_err("it may not leave the mesh");
    assert!(told.contains("reset"), "{told}");
    // Who has no sidecar is refused at the application's port, whichever address it takes.
    for to in [format!("http://{pod_ip}:8080/"), format!("http://{cluster_ip}/")] {
        let told = curl(cluster, ELSEWHERE, &json!({}), &["--retry", "2", &to]);
        assert!(told.is_err(), "{to}: {told:?}");
    }
    let told = curl(cluster, ELSEWHERE, &json!({}), &[&format!("http://{pod_ip}:15020/probes/app/readiness")]);
    assert!(told.as_ref().is_ok_and(|told| told == "ok\n"), "{told:?}");

    // A program that is not well, and one that has died. A pod of the mesh has told them to.
    for (pod, what) in [("calls", "x-do: sicken"), ("mortal", "x-do: die")] {
        let to = format!("http://{pod}.{NAMESPACE}/");
        let told = curl(cluster, NAMESPACE, &redirected, &["--http2-prior-knowledge", "-H", what, &to]);
        assert_eq!(told.is_ok(), pod == "calls", "{told:?}");
        wait_for(cluster, NAMESPACE, pod, false);
    }
    wait_for(cluster, NAMESPACE, "page", true);
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
    cluster.kubectl(&["-n", ELSEWHERE, "delete", "pod/outsider", "service/outsider", "sa/outsider", "--wait=false"]);
}
