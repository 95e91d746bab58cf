//! Probes and hooks, which the sidecar makes.

use super::*;

/// A pod whose container has these fields.
fn having(fields: Value) -> Value {
    let mut pod = with(json!({}));
    pod["spec"]["containers"][0]["ports"] =
        json!([{ "containerPort": 9000 }, { "containerPort": 8080, "name": "admin" }]);
    pod["spec"]["containers"][0].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    pod
}

fn redirected(fields: Value) -> Value {
    let mut pod = having(fields);
    pod["metadata"]["annotations"] =
        json!({ "weft.dev/redirect": "enabled", "weft.dev/exclude-inbound-ports": "7000-7010" });
    pod
}

/// What the sidecar of a pod is told to ask.
fn originals(pod: &Value) -> Value {
    let inits = pod["spec"]["initContainers"].as_array().unwrap();
    let sidecar = inits.iter().find(|of| of["name"] == "weft-sidecar").unwrap();
    let found = sidecar["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "WEFT_PROBES");
    found.map_or(Value::Null, |found| serde_json::from_str(found["value"].as_str().unwrap()).unwrap())
}

fn at_sidecar(path: &str) -> Value {
    json!({ "path": path, "port": 15020, "scheme": "HTTP" })
}

#[test]
fn probes_of_all_kinds_go_to_the_sidecar_and_keep_their_times() {
    let mut pod = having(json!({
        "startupProbe": { "grpc": { "port": 9000, "service": "shop" }, "failureThreshold": 30, "futureField": [1] },
        "readinessProbe": {
            "httpGet": {
                "path": "/up?a=$(X)", "port": "admin", "scheme": "HTTPS",
                "httpHeaders": [{ "name": "X-A", "value": "b" }, { "name": "X-A", "value": "" }],
            },
            "periodSeconds": 3, "timeoutSeconds": 7,
        },
        "livenessProbe": { "tcpSocket": { "port": "9000" }, "timeoutSeconds": 0 },
    }));
    pod["spec"]["initContainers"] =
        json!([{ "name": "helper", "restartPolicy": "Always", "startupProbe": { "httpGet": { "port": 1 } } }]);
    let injected = injected(&pod);
    let container = &injected["spec"]["containers"][0];
    let expected = json!({
        "failureThreshold": 30, "futureField": [1], "httpGet": at_sidecar("/probes/users/startup"),
    });
    assert_eq!(container["startupProbe"], expected);
    let expected = json!({ "periodSeconds": 3, "timeoutSeconds": 7, "httpGet": at_sidecar("/probes/users/readiness") });
    assert_eq!(container["readinessProbe"], expected);
    assert_eq!(
        container["livenessProbe"],
        json!({ "timeoutSeconds": 0, "httpGet": at_sidecar("/probes/users/liveness") })
    );
    assert_eq!(injected["spec"]["initContainers"][1]["startupProbe"]["httpGet"], at_sidecar("/probes/helper/startup"));
    let page = json!({ "port": 8080, "path": "/up?a=$(X)", "scheme": "HTTPS", "headers": [["X-A", "b"], ["X-A", ""]] });
    let expected = json!({
        "users": {
            "startup": { "grpc": { "port": 9000, "service": "shop" } },
            "readiness": { "httpGet": page, "timeoutSeconds": 7 },
            "liveness": { "tcpSocket": { "port": 9000 } },
        },
        "helper": { "startup": { "httpGet": { "port": 1, "path": "" } } },
    });
    assert_eq!(originals(&injected), expected);
    let variable = variable(&injected, "WEFT_PROBES").unwrap();
    assert!(!variable.contains('$'), "the kubelet would take it for a reference: {variable}");
    // Again, as with `reinvocationPolicy: IfNeeded`.
    assert_eq!(inject(&Config::default(), &shop(), &injected), Ok(Decision::Skip(Reason::HasSidecar)));
}

#[test]
fn what_does_not_come_to_the_application_s_port_stays() {
    for (field, probe) in [
        ("livenessProbe", json!({ "exec": { "command": ["true"] } })),
        ("livenessProbe", json!({ "httpGet": { "host": "127.0.0.1", "port": 80 } })),
        ("livenessProbe", json!({ "tcpSocket": { "host": "db.example", "port": 5432 } })),
        ("livenessProbe", json!({ "httpGet": { "port": 15020, "path": "/readyz" } })),
        ("livenessProbe", json!(null)),
        ("livenessProbe", json!({ "periodSeconds": 1 })),
        (
            "lifecycle",
            json!({ "preStop": { "exec": { "command": ["true"] } }, "postStart": { "sleep": { "seconds": 1 } } }),
        ),
        // Kubernetes has never made these.
        ("lifecycle", json!({ "preStop": { "tcpSocket": { "port": 80 } } })),
        ("lifecycle", json!({ "preStop": { "httpGet": { "port": 80, "host": "hooks.example" } } })),
        // The kubelet reaches it.
        (
            "lifecycle",
            json!({ "postStart": { "httpGet": { "port": 7001 } }, "preStop": { "httpGet": { "port": 7000 } } }),
        ),
    ] {
        let pod = redirected(json!({ field: probe }));
        let injected = injected(&pod);
        assert_eq!(injected["spec"]["containers"][0][field], probe);
        assert_eq!(originals(&injected), Value::Null);
    }
}

#[test]
fn a_hook_before_the_stop_of_a_redirected_pod_goes_to_the_sidecar() {
    let hook = json!({ "lifecycle": { "preStop": { "httpGet": { "port": "admin", "path": "/stop" } }, "stopSignal": "SIGINT" } });
    let mut pod = redirected(hook.clone());
    pod["spec"]["terminationGracePeriodSeconds"] = json!(45);
    let redirected_pod = injected(&pod);
    let lifecycle = json!({ "preStop": { "httpGet": at_sidecar("/probes/users/preStop") }, "stopSignal": "SIGINT" });
    assert_eq!(redirected_pod["spec"]["containers"][0]["lifecycle"], lifecycle);
    let original = json!({ "httpGet": { "port": 8080, "path": "/stop" }, "timeoutSeconds": 45 });
    assert_eq!(originals(&redirected_pod), json!({ "users": { "preStop": original } }));
    assert_eq!(inject(&Config::default(), &shop(), &redirected_pod), Ok(Decision::Skip(Reason::HasSidecar)));
    // Without redirection the kubelet reaches the application.
    let plain = having(hook.clone());
    assert_eq!(injected(&plain)["spec"]["containers"][0]["lifecycle"], hook["lifecycle"]);
    // Anybody could have the sidecar repeat this one.
    let told = refused(&redirected(json!({ "lifecycle": { "postStart": { "httpGet": { "port": 8080 } } } })));
    assert!(told.starts_with("spec.containers[0].lifecycle.postStart.httpGet: found a request to the pod"), "{told}");
    injected(&having(json!({ "lifecycle": { "postStart": { "httpGet": { "port": 8080 } } } })));
}

#[test]
fn a_probe_that_can_not_be_made_is_an_error_that_names_it() {
    let long = "x".repeat(8 * 1024 + 1);
    let many: Vec<Value> = (0..9).map(|_| json!({ "name": "x", "value": long })).collect();
    for (probe, said) in [
        (
            json!({ "httpGet": { "port": "web" } }),
            "livenessProbe.httpGet.port: found the text \"web\"; allowed: a whole number",
        ),
        (json!({ "httpGet": {} }), "livenessProbe.httpGet.port: found nothing"),
        (json!({ "grpc": { "port": 70_000 } }), "livenessProbe.grpc.port: found the number 70000"),
        (json!({ "tcpSocket": [] }), "livenessProbe.tcpSocket: found a list; allowed: a table"),
        (json!({ "tcpSocket": { "port": 1, "host": 5 } }), "livenessProbe.tcpSocket.host: found the number 5"),
        (json!({ "grpc": { "port": 1, "service": 5 } }), "livenessProbe.grpc.service: found the number 5"),
        (json!({ "httpGet": { "port": 1, "scheme": "ftp" } }), "livenessProbe.httpGet.scheme: found the text \"ftp\""),
        (json!({ "httpGet": { "port": 1, "path": long } }), "livenessProbe.httpGet.path: found 8193 bytes"),
        (
            json!({ "httpGet": { "port": 1, "httpHeaders": [{ "name": "a", "value": "b" }, { "name": "a b" }] } }),
            "livenessProbe.httpGet.httpHeaders[1].name: found the text \"a b\"",
        ),
        (
            json!({ "httpGet": { "port": 1, "httpHeaders": [{ "name": "a", "value": "b\r\nc: d" }] } }),
            "livenessProbe.httpGet.httpHeaders[0].value: found the text",
        ),
        (json!({ "grpc": { "port": 1 }, "timeoutSeconds": -1 }), "livenessProbe.timeoutSeconds: found the number -1"),
    ] {
        let told = refused(&having(json!({ "livenessProbe": probe })));
        assert!(told.starts_with(&format!("spec.containers[0].{said}")), "{told}");
    }
    let told = refused(&having(json!({ "livenessProbe": { "httpGet": { "port": 1, "httpHeaders": many } } })));
    assert!(
        told.starts_with("spec.containers: found probes of 7") && told.ends_with("allowed: at most 65536"),
        "{told}"
    );
    let told = refused(&having(json!({ "name": "a/b", "livenessProbe": { "tcpSocket": { "port": 1 } } })));
    assert!(told.starts_with("spec.containers[0].name: found the text \"a/b\""), "{told}");
    // A name that is in no path may be what it likes; the API server decides.
    injected(&having(json!({ "name": "a/b" })));
}

#[test]
fn probes_of_containers_that_came_later_go_to_the_sidecar_too() {
    let agent = json!({ "name": "agent", "env": [{ "name": "WEFT_OUTBOUND" }, { "name": "WEFT_NAMESPACE" }],
        "livenessProbe": { "tcpSocket": { "port": 1 } } });
    let added = json!({ "liveness": { "tcpSocket": { "port": 1 } } });
    let first = json!({ "readiness": { "grpc": { "port": 9000, "service": "" } } });
    for (pod, expected) in [
        (having(json!({})), json!({ "agent": added })),
        (having(json!({ "readinessProbe": { "grpc": { "port": 9000 } } })), json!({ "users": first, "agent": added })),
    ] {
        let mut pod = injected(&pod);
        pod["spec"]["containers"].as_array_mut().unwrap().push(agent.clone());
        let pod = injected(&pod);
        assert_eq!(originals(&pod), expected);
        assert_eq!(pod["spec"]["containers"][1]["livenessProbe"]["httpGet"], at_sidecar("/probes/agent/liveness"));
        assert_eq!(inject(&Config::default(), &shop(), &pod), Ok(Decision::Skip(Reason::HasSidecar)));
        // To a container that has some already.
        let mut pod = pod;
        pod["spec"]["containers"][1]["startupProbe"] = json!({ "tcpSocket": { "port": 2 } });
        let pod = injected(&pod);
        assert_eq!(originals(&pod)["agent"]["startup"]["tcpSocket"]["port"], 2);
        assert_eq!(originals(&pod)["agent"]["liveness"], added["liveness"]);
    }
}

/// The sidecar must start with whatever it is given here.
#[test]
fn a_pod_without_a_port_has_probes_too() {
    let mut pod = having(json!({ "livenessProbe": { "tcpSocket": { "port": 1 } } }));
    pod["spec"]["containers"][0]["ports"] = json!([]);
    let injected = injected(&pod);
    assert_eq!(variable(&injected, "WEFT_APP"), None);
    assert_eq!(variable(&injected, "WEFT_ADVERTISE").as_deref(), Some("$(POD_IP):15006"), "where probes go");
}
