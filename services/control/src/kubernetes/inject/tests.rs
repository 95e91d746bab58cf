use serde_json::{Value, json};

use super::{Config, Decision, Error, Namespace, Reason, inject};

mod contracts;
mod hostile;
mod probes;
mod properties;
mod redirect;

fn shop() -> Namespace {
    Namespace::enabled("shop")
}

fn patch_of(pod: &Value) -> Result<Vec<Value>, Error> {
    match inject(&Config::default(), &shop(), pod)? {
        Decision::Patch(operations) => Ok(operations),
        Decision::Skip(reason) => panic!("skipped: {reason}: {pod}"),
    }
}

fn apply(pod: &Value, operations: Vec<Value>) -> Value {
    let mut pod = pod.clone();
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations)).expect("a patch of RFC 6902");
    json_patch::patch(&mut pod, &patch).expect("it fits the pod");
    pod
}

fn injected(pod: &Value) -> Value {
    apply(pod, patch_of(pod).unwrap_or_else(|error| panic!("{error}: {pod}")))
}

fn refused(pod: &Value) -> String {
    patch_of(pod).expect_err("an error").to_string()
}

/// A pod with one container, which has a port, and these annotations.
fn with(annotations: Value) -> Value {
    let container = json!({ "name": "users", "image": "users", "ports": [{ "containerPort": 9000 }] });
    json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [container] } })
}

/// The sidecar of a pod.
fn sidecar(pod: &Value) -> Value {
    let sidecar = pod["spec"]["initContainers"][0].clone();
    assert_eq!(sidecar["name"], "weft-sidecar", "{pod}");
    sidecar
}

/// A variable of the sidecar of a pod, if it has it.
fn variable(pod: &Value, name: &str) -> Option<String> {
    let sidecar = sidecar(pod);
    let found = sidecar["env"].as_array()?.iter().find(|variable| variable["name"] == name)?.clone();
    Some(found["value"].as_str().map_or_else(|| found["valueFrom"].to_string(), str::to_owned))
}

#[test]
fn a_pod_gets_its_sidecar_and_keeps_what_it_has() {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "generateName": "users-5d9-", "labels": { "app": "users" }, "annotations": { "a.b/c": "d" } },
        "spec": {
            "serviceAccountName": "users",
            "futureField": { "x": [null, 1.5] },
            "initContainers": [{ "name": "migrate", "image": "users" }],
            "containers": [{
                "name": "users",
                "image": "users",
                "ports": [{ "containerPort": 53, "protocol": "UDP" }, { "containerPort": 9000, "name": "grpc" }],
                "env": [{ "name": "WEFT_NAMESPACE", "value": "mine" }, { "name": "URL", "value": "$(WEFT_OUTBOUND)/x" }],
            }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    });
    let namespace = json!({ "fieldRef": { "fieldPath": "metadata.namespace" } });
    let outbound = json!({ "name": "WEFT_OUTBOUND", "value": "http://127.0.0.1:15001" });
    let mut expected = pod.clone();
    expected["metadata"]["annotations"]["weft.dev/injected"] = json!(env!("CARGO_PKG_VERSION"));
    let env = expected["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.insert(0, outbound.clone());
    expected["spec"]["initContainers"][0]["env"] =
        json!([outbound, { "name": "WEFT_NAMESPACE", "valueFrom": namespace }]);
    let container = json!({
        "name": "weft-sidecar",
        "image": concat!("weft/sidecar:", env!("CARGO_PKG_VERSION")),
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "env": [
            { "name": "WEFT_NAMESPACE", "valueFrom": namespace },
            { "name": "WEFT_SERVICE", "valueFrom": { "fieldRef": { "fieldPath": "spec.serviceAccountName" } } },
            { "name": "WEFT_APP", "value": "127.0.0.1:9000" },
            { "name": "WEFT_PROTOCOL", "value": "grpc" },
            { "name": "WEFT_ASK_CONTRACTS", "value": "true" },
            { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "WEFT_ADVERTISE", "value": "$(POD_IP):15006" },
            { "name": "WEFT_CONTROL_PLANE", "value": "https://control.weft.svc:15010" },
            { "name": "WEFT_TRUST_DOMAIN", "value": "weft.local" },
            { "name": "WEFT_TRUST_BUNDLE", "value": "/var/run/weft/trust/bundle.pem" },
            { "name": "WEFT_JOIN_TOKEN_FILE", "value": "/var/run/weft/token/token" },
            { "name": "WEFT_MEMORY", "value": "134217728" },
            { "name": "WEFT_DRAIN_SECONDS", "value": "10" },
            { "name": "WEFT_SAMPLE_RATIO", "value": "0.01" },
            { "name": "WEFT_LOG_FORMAT", "value": "text" },
        ],
        "ports": [{ "name": "weft-metrics", "containerPort": 15020, "protocol": "TCP" }],
        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "cpu": "1", "memory": "256Mi" } },
        "startupProbe": {
            "httpGet": { "path": "/startz", "port": 15020 }, "periodSeconds": 1, "failureThreshold": 14400,
        },
        "readinessProbe": {
            "httpGet": { "path": "/readyz", "port": 15020 }, "periodSeconds": 2, "failureThreshold": 2,
        },
        "lifecycle": { "preStop": { "exec": { "command": ["/weft-sidecar", "drain"] } } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": "weft-token", "mountPath": "/var/run/weft/token", "readOnly": true },
            { "name": "weft-trust", "mountPath": "/var/run/weft/trust", "readOnly": true },
        ],
    });
    expected["spec"]["initContainers"].as_array_mut().unwrap().insert(0, container);
    let token = json!({ "audience": "weft", "expirationSeconds": 3600, "path": "token" });
    expected["spec"]["volumes"].as_array_mut().unwrap().extend([
        json!({ "name": "weft-token", "projected": { "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": "weft-trust", "configMap": { "name": "weft-trust" } }),
    ]);
    assert_eq!(injected(&pod), expected);
}

#[test]
fn a_pod_may_lack_what_is_added_to() {
    for pod in [
        json!({ "spec": { "containers": [{ "name": "a", "image": "a" }] } }),
        json!({ "metadata": null, "spec": { "containers": [{ "name": "a", "image": "a", "env": null, "ports": null }] } }),
        json!({
            "metadata": { "annotations": null, "labels": null },
            "spec": {
                "containers": [{ "name": "a", "image": "a", "env": [] }],
                "initContainers": null,
                "volumes": null,
                "terminationGracePeriodSeconds": null,
                "automountServiceAccountToken": false,
            },
        }),
    ] {
        let injected = injected(&pod);
        assert_eq!(injected["spec"]["initContainers"].as_array().unwrap().len(), 1);
        assert_eq!(injected["spec"]["volumes"].as_array().unwrap().len(), 2);
        assert_eq!(injected["spec"]["containers"][0]["env"][1]["name"], "WEFT_NAMESPACE");
        assert_eq!(injected["metadata"]["annotations"], json!({ "weft.dev/injected": env!("CARGO_PKG_VERSION") }));
        // It has no port, so that nobody calls it.
        for name in ["WEFT_SERVICE", "WEFT_APP", "WEFT_PROTOCOL", "WEFT_ASK_CONTRACTS", "WEFT_ADVERTISE", "POD_IP"] {
            assert_eq!(variable(&injected, name), None, "{name}");
        }
    }
}

#[test]
fn the_port_and_its_protocol_are_those_of_the_pod() {
    let port = |number: u16, name: &str| json!({ "containerPort": number, "name": name });
    let udp = json!({ "containerPort": 53, "name": "tcp-not", "protocol": "UDP" });
    for (annotations, ports, app, protocol) in [
        (json!({}), json!([port(80, "http")]), "127.0.0.1:80", "http1"),
        (json!({}), json!([port(80, "http-web"), port(90, "grpc")]), "127.0.0.1:80", "http1"),
        (json!({}), json!([udp, port(90, "grpc-api")]), "127.0.0.1:90", "grpc"),
        (json!({}), json!([port(90, "http2")]), "127.0.0.1:90", "grpc"),
        (json!({}), json!([port(90, "h2c")]), "127.0.0.1:90", "grpc"),
        (json!({}), json!([port(443, "https")]), "127.0.0.1:443", "tcp"),
        (json!({}), json!([port(5432, "tcp-postgres")]), "127.0.0.1:5432", "tcp"),
        (json!({}), json!([{ "containerPort": 8080 }]), "127.0.0.1:8080", "grpc"),
        (json!({ "weft.dev/port": "90" }), json!([port(80, "http"), port(90, "tcp")]), "127.0.0.1:90", "tcp"),
        (json!({ "weft.dev/port": "90" }), json!([port(80, "http")]), "127.0.0.1:90", "grpc"),
        (json!({ "weft.dev/port": "90" }), json!(null), "127.0.0.1:90", "grpc"),
        (json!({ "weft.dev/protocol": "http1" }), json!([port(90, "grpc")]), "127.0.0.1:90", "http1"),
    ] {
        let mut pod = with(annotations);
        pod["spec"]["containers"][0]["ports"] = ports;
        let injected = injected(&pod);
        let found = ["WEFT_APP", "WEFT_PROTOCOL", "WEFT_ASK_CONTRACTS"].map(|name| variable(&injected, name));
        let asks = (protocol == "grpc").then(|| "true".to_owned());
        assert_eq!(found, [Some(app.to_owned()), Some(protocol.to_owned()), asks], "{pod}");
    }
    // The port of another container is not the application's, unless the pod says so.
    let mut pod = with(json!({}));
    pod["spec"]["containers"] = json!([{ "name": "a" }, { "name": "b", "ports": [port(70, "http")] }]);
    assert_eq!(variable(&injected(&pod), "WEFT_APP"), None);
    pod["metadata"]["annotations"] = json!({ "weft.dev/port": "70" });
    assert_eq!(variable(&injected(&pod), "WEFT_PROTOCOL").as_deref(), Some("http1"));
}

#[test]
fn annotations_change_the_sidecar() {
    let pod = injected(&with(json!({
        "weft.dev/health": "http:/up",
        "weft.dev/log-format": "json",
        "weft.dev/memory": "64Mi",
        "weft.dev/sample-ratio": "1",
        "weft.dev/drain-seconds": "30",
        "weft.dev/cpu-request": "2",
        "weft.dev/memory-limit": "128Mi",
        "other.dev/x": "y",
    })));
    let found = ["WEFT_HEALTH", "WEFT_LOG_FORMAT", "WEFT_MEMORY", "WEFT_SAMPLE_RATIO", "WEFT_DRAIN_SECONDS"]
        .map(|name| variable(&pod, name).unwrap());
    assert_eq!(found, ["http:/up", "json", "67108864", "1", "30"]);
    let limits = json!({ "cpu": "2", "memory": "128Mi" });
    assert_eq!(sidecar(&pod)["resources"], json!({ "requests": { "cpu": "2", "memory": "32Mi" }, "limits": limits }));

    let small = injected(&with(json!({ "weft.dev/memory-limit": "32Mi", "weft.dev/cpu-limit": "5m" })));
    assert_eq!(variable(&small, "WEFT_MEMORY").as_deref(), Some("16777216"));
    assert_eq!(sidecar(&small)["resources"]["requests"], json!({ "cpu": "5m", "memory": "32Mi" }));
    let large = injected(&with(json!({ "weft.dev/memory-limit": "1Gi", "weft.dev/memory": "992Mi" })));
    assert_eq!(variable(&large, "WEFT_MEMORY").as_deref(), Some("1040187392"));
}

#[test]
fn the_drain_ends_inside_the_grace_period() {
    for (grace, expected) in [
        (json!(null), "10"),
        (json!(30), "10"),
        (json!(15), "10"),
        (json!(14), "9"),
        (json!(5), "1"),
        (json!(0), "1"),
        (json!(-1), "1"),
        (json!(3600), "10"),
    ] {
        let mut pod = with(json!({}));
        pod["spec"]["terminationGracePeriodSeconds"] = grace.clone();
        assert_eq!(variable(&injected(&pod), "WEFT_DRAIN_SECONDS").as_deref(), Some(expected), "{grace}");
    }
    let mut pod = with(json!({ "weft.dev/drain-seconds": "60" }));
    let told = refused(&pod);
    let expected = "metadata.annotations[weft.dev/drain-seconds]: found the text \"60\"; allowed: a whole number from 0 to 30, \
                    which is the pod's terminationGracePeriodSeconds";
    assert_eq!(told, expected);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(90);
    assert_eq!(variable(&injected(&pod), "WEFT_DRAIN_SECONDS").as_deref(), Some("60"));
}

#[test]
fn a_bad_annotation_is_an_error_that_names_it() {
    for (key, value, allowed) in [
        (
            "weft.dev/port",
            json!("http"),
            "found the text \"http\"; allowed: a whole number from 1 to 65535, but for 15000",
        ),
        ("weft.dev/port", json!("0"), "found the text \"0\"; allowed: a whole number"),
        ("weft.dev/port", json!("15006"), "found the text \"15006\"; allowed: a whole number"),
        ("weft.dev/port", json!(" 80"), "found the text \" 80\"; allowed: a whole number"),
        // As YAML reads `weft.dev/port: 8080`.
        ("weft.dev/port", json!(8080), "found the number 8080; allowed: a text, in quotes"),
        ("weft.dev/protocol", json!("http"), "found the text \"http\"; allowed: grpc, http1, tcp"),
        ("weft.dev/protocol", json!(""), "found the text \"\"; allowed: grpc, http1, tcp"),
        ("weft.dev/health", json!("http:up"), "found the text \"http:up\"; allowed: grpc, tcp, http:/PATH"),
        ("weft.dev/health", json!("http:/a b"), "found the text \"http:/a b\"; allowed: grpc, tcp, http:/PATH"),
        ("weft.dev/log-format", json!("xml"), "found the text \"xml\"; allowed: text, json"),
        ("weft.dev/memory", json!("15Mi"), "found the text \"15Mi\"; allowed: an amount from 16Mi to 224Mi"),
        ("weft.dev/memory", json!("225Mi"), "found the text \"225Mi\"; allowed: an amount from 16Mi to 224Mi"),
        ("weft.dev/memory", json!("lots"), "found the text \"lots\"; allowed: an amount from"),
        ("weft.dev/drain-seconds", json!("1.5"), "found the text \"1.5\"; allowed: a whole number from 0 to 30"),
        ("weft.dev/sample-ratio", json!("1.01"), "found the text \"1.01\"; allowed: a number from 0 to 1"),
        ("weft.dev/sample-ratio", json!("NaN"), "found the text \"NaN\"; allowed: a number from 0 to 1"),
        ("weft.dev/sample-ratio", json!(true), "found the truth value `true`; allowed: a text, in quotes"),
        ("weft.dev/cpu-request", json!("0"), "found the text \"0\"; allowed: an amount above 0"),
        ("weft.dev/cpu-limit", json!("fast"), "found the text \"fast\"; allowed: an amount above 0"),
        ("weft.dev/memory-limit", json!("31Mi"), "found the text \"31Mi\"; allowed: from 32Mi on"),
        ("weft.dev/memory-request", json!("-1"), "found the text \"-1\"; allowed: an amount above 0"),
        ("weft.dev/prot", json!("1"), "unknown annotation; allowed: weft.dev/port, "),
        ("weft.dev/inject", json!("enabled"), "unknown annotation; allowed: "),
    ] {
        let told = refused(&with(json!({ key: value })));
        assert!(told.starts_with(&format!("metadata.annotations[{key}]: {allowed}")), "{told}");
    }
    assert!(refused(&with(json!({ "weft.dev/prot": "1" }))).ends_with("(did you mean `weft.dev/port`?)"));
    assert!(refused(&with(json!({ "weft.dev/inject": "enabled" }))).ends_with("(it is a label)"));
    let told = refused(&with(json!({ "weft.dev/cpu-request": "2", "weft.dev/cpu-limit": "1500m" })));
    let expected = "metadata.annotations[weft.dev/cpu-request]: found the text \"2\"; allowed: at most 1500m, which is \
                    weft.dev/cpu-limit";
    assert_eq!(told, expected);
    let mut pod = with(json!({ "weft.dev/protocol": "tcp" }));
    pod["spec"]["containers"][0]["ports"] = json!([]);
    assert!(refused(&pod).starts_with("metadata.annotations[weft.dev/protocol]: found no port"), "{}", refused(&pod));
}

#[test]
fn a_pod_that_can_not_work_with_a_sidecar_is_an_error() {
    let ports = |list: &str, port: Value| {
        let mut pod = with(json!({}));
        pod["spec"][list] = json!([{ "name": "a" }, { "name": "b", "ports": [{ "containerPort": 80 }, port] }]);
        pod
    };
    for (pod, expected) in [
        (
            ports("containers", json!({ "containerPort": 15001 })),
            "spec.containers[1].ports[1].containerPort: found the number 15001; allowed: a whole number from 1 to 65535, but for \
             15000 to 15020: these are the sidecar's",
        ),
        (
            ports("initContainers", json!({ "containerPort": 15020, "protocol": "TCP" })),
            "spec.initContainers[1].ports[1].containerPort: found the number 15020; allowed: a whole number",
        ),
        (
            ports("containers", json!({ "containerPort": "http" })),
            "spec.containers[1].ports[1].containerPort: found the text \"http\"; allowed: a whole number from 1 to 65535",
        ),
        (
            json!({ "spec": { "containers": [], "volumes": [{ "name": "data" }, { "name": "weft-token" }] } }),
            "spec.volumes[1].name: found the text \"weft-token\"; allowed: another name",
        ),
        (
            json!({ "spec": { "serviceAccountName": "team.users", "containers": [] } }),
            "spec.serviceAccountName: found the text \"team.users\"; allowed: the name of a service",
        ),
        (json!({ "metadata": { "name": "x" } }), "spec: missing"),
        (json!([]), "pod: found a list; allowed: a table"),
        (json!({ "spec": { "containers": {} } }), "spec.containers: found a table of keys and values; allowed: a list"),
        (json!({ "spec": { "containers": [1] } }), "spec.containers[0]: found the number 1; allowed: a table"),
        (
            json!({ "spec": { "containers": [{ "name": "a", "env": { "A": "b" } }] } }),
            "spec.containers[0].env: found a table of keys and values; allowed: a list",
        ),
        (
            json!({ "spec": {}, "metadata": { "annotations": [] } }),
            "metadata.annotations: found a list; allowed: a table",
        ),
    ] {
        let told = refused(&pod);
        assert!(told.starts_with(expected), "{told}");
    }
    // Another transport's ports are others.
    injected(&ports("containers", json!({ "containerPort": 15001, "protocol": "UDP" })));
    assert_eq!(
        patch_of(&json!([])).unwrap_err().below("spec.template.").to_string(),
        "spec.template.pod: found a list; allowed: a table of keys and values"
    );
}

#[test]
fn the_label_of_the_pod_wins_over_that_of_its_namespace() {
    let labelled = |label: Option<&str>| {
        let mut pod = with(json!({}));
        if let Some(label) = label {
            pod["metadata"]["labels"] = json!({ "weft.dev/inject": label });
        }
        pod
    };
    let namespace = |label: Option<&str>| Namespace { name: "shop".into(), inject: label.map(str::to_owned) };
    let (on, off) = (Some("enabled"), Some("disabled"));
    for (of_namespace, of_pod, expected) in [
        (on, None, None),
        (on, on, None),
        (None, on, None),
        (off, on, None),
        // What the pod says itself is enough.
        (Some("true"), on, None),
        (on, off, Some(Reason::Disabled)),
        (None, off, Some(Reason::Disabled)),
        (None, None, Some(Reason::NotEnabled)),
        (off, None, Some(Reason::NotEnabled)),
    ] {
        let skipped = match inject(&Config::default(), &namespace(of_namespace), &labelled(of_pod)) {
            Ok(Decision::Patch(_)) => None,
            Ok(Decision::Skip(reason)) => Some(reason),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(skipped, expected, "{of_namespace:?}, {of_pod:?}");
    }
    let told = |of_namespace, of_pod| {
        inject(&Config::default(), &namespace(of_namespace), &labelled(of_pod)).unwrap_err().to_string()
    };
    let expected = "metadata.labels[weft.dev/inject]: found the text \"true\"; allowed: enabled, disabled";
    assert_eq!(told(on, Some("true")), expected);
    let expected = "the label weft.dev/inject of the namespace shop: found the text \"on\"; allowed: enabled, disabled";
    assert_eq!(told(Some("on"), None), expected);
    // A pod that gets no sidecar may be as wrong as it likes.
    let wrong = json!({ "spec": { "containers": {} }, "metadata": { "annotations": { "weft.dev/port": 1 } } });
    let decision = inject(&Config::default(), &namespace(None), &wrong);
    assert_eq!(decision, Ok(Decision::Skip(Reason::NotEnabled)));
}

#[test]
fn unsuitable_pods_are_left_alone() {
    let spec = |key: &str, value: Value| {
        let mut pod = with(json!({}));
        pod["spec"][key] = value;
        pod
    };
    let own = json!([{ "name": "weft-sidecar", "image": "mine", "restartPolicy": "Always" }]);
    for (pod, expected) in [
        (spec("hostNetwork", json!(true)), Reason::HostNetwork),
        (spec("os", json!({ "name": "windows" })), Reason::Windows),
        (spec("nodeSelector", json!({ "kubernetes.io/os": "windows" })), Reason::Windows),
        (with(json!({ "kubernetes.io/config.mirror": "ab" })), Reason::Mirror),
        (spec("initContainers", own.clone()), Reason::NameTaken),
        (spec("containers", own.clone()), Reason::NameTaken),
    ] {
        assert_eq!(inject(&Config::default(), &shop(), &pod), Ok(Decision::Skip(expected)), "{pod}");
        assert!(!expected.to_string().is_empty() && (expected.is_refusal() || expected == Reason::Mirror));
    }
    let decision = inject(&Config::default(), &Namespace::enabled("weft"), &with(json!({})));
    assert_eq!(decision, Ok(Decision::Skip(Reason::ControlPlane)));
    for suitable in [spec("hostNetwork", json!(false)), spec("os", json!({ "name": "linux" }))] {
        injected(&suitable);
    }
    // A second one of the name beside the sidecar.
    let mut pod = injected(&with(json!({})));
    pod["spec"]["containers"].as_array_mut().unwrap().extend(own.as_array().unwrap().clone());
    assert_eq!(inject(&Config::default(), &shop(), &pod), Ok(Decision::Skip(Reason::NameTaken)));
}

#[test]
fn containers_that_came_later_are_completed() {
    let mut pod = injected(&with(json!({})));
    assert_eq!(inject(&Config::default(), &shop(), &pod), Ok(Decision::Skip(Reason::HasSidecar)));
    // As the API server has it meanwhile: another webhook has added these.
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "agent", "env": [{ "name": "WEFT_NAMESPACE" }] }));
    pod["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({ "name": "first" }));
    let again = patch_of(&pod).unwrap();
    let paths: Vec<&str> = again.iter().map(|operation| operation["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/spec/initContainers/0/env", "/spec/containers/1/env/0"]);
    let pod = apply(&pod, again);
    assert_eq!(inject(&Config::default(), &shop(), &pod), Ok(Decision::Skip(Reason::HasSidecar)));
    // The annotation alone, as in a template that was copied from a running pod, makes no sidecar.
    let copied = with(json!({ "weft.dev/injected": "0.0.1" }));
    assert_eq!(injected(&copied)["metadata"]["annotations"]["weft.dev/injected"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_configuration_is_that_of_all_sidecars() {
    let text = "sidecar_image: registry.test/weft:1\nimage_pull_policy: Always\ncontrol_plane: https://10.0.0.1:1\n\
                trust_domain: corp.test\notlp: [\"http://a:1\", \"http://b:2\"]\nsample_ratio: 0.5\nlog_format: json\n\
                resources: { limits: { memory: 64Mi } }\n";
    let config = Config::parse("inject.yaml", text).unwrap();
    let pod = with(json!({}));
    let Ok(Decision::Patch(operations)) = inject(&config, &shop(), &pod) else { panic!() };
    let pod = apply(&pod, operations);
    let sidecar = sidecar(&pod);
    assert_eq!((&sidecar["image"], &sidecar["imagePullPolicy"]), (&json!("registry.test/weft:1"), &json!("Always")));
    let names =
        ["WEFT_CONTROL_PLANE", "WEFT_TRUST_DOMAIN", "WEFT_OTLP", "WEFT_SAMPLE_RATIO", "WEFT_LOG_FORMAT", "WEFT_MEMORY"];
    let found = names.map(|name| variable(&pod, name).unwrap());
    assert_eq!(found, ["https://10.0.0.1:1", "corp.test", "http://a:1,http://b:2", "0.5", "json", "33554432"]);
}
