//! Pods that nobody would make by mistake.

use super::*;

#[test]
fn a_pod_with_very_many_containers_is_refused_before_a_patch_is_built() {
    let many = |count: usize| Value::Array(vec![json!({ "name": "x" }); count]);
    let with = |containers: usize, init: usize| json!({ "spec": { "containers": many(containers), "initContainers": many(init) } });
    injected(&with(200, 56));
    for pod in [with(257, 0), with(0, 257), with(200, 57), with(300_000, 0)] {
        let told = refused(&pod);
        assert!(told.starts_with("spec.containers: found ") && told.ends_with("allowed: at most 256"), "{told}");
    }
}

/// The token is the sidecar's identity.
#[test]
fn no_other_container_may_mount_the_token() {
    let greedy =
        json!({ "name": "x", "volumeMounts": [{ "name": "data" }, { "name": "weft-token", "mountPath": "/t" }] });
    for list in ["containers", "initContainers"] {
        let mut pod = with(json!({}));
        pod["spec"][list] = json!([greedy]);
        let told = refused(&pod);
        let said =
            format!("spec.{list}[0].volumeMounts[1].name: found the text \"weft-token\"; allowed: another volume");
        assert!(told.starts_with(&said), "{told}");
    }
    // Another webhook has added it to a pod that has its sidecar.
    let mut pod = injected(&with(json!({})));
    pod["spec"]["containers"].as_array_mut().unwrap().push(greedy);
    assert!(refused(&pod).starts_with("spec.containers[1].volumeMounts[1].name: "));
}
