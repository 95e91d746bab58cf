//! Contracts from a ConfigMap.

use super::*;

const KEY: &str = "weft.dev/contracts";

#[test]
fn the_sidecar_reads_contracts_from_the_config_map_that_the_pod_names() {
    let mut pod = with(json!({ KEY: "users.contracts-1" }));
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "beside", "image": "b" }));
    let pod = injected(&pod);
    assert_eq!(variable(&pod, "WEFT_DESCRIPTORS").as_deref(), Some("/var/run/weft/contracts/descriptors.binpb"));
    assert_eq!(variable(&pod, "WEFT_ASK_CONTRACTS"), None);
    let implemented: Value = serde_json::from_str(&variable(&pod, "WEFT_CONTRACTS").unwrap()).unwrap();
    let key = json!({ "name": "users.contracts-1", "key": "contracts", "optional": true });
    assert_eq!(implemented, json!({ "configMapKeyRef": key }));
    let items = json!([{ "key": "descriptors.binpb", "path": "descriptors.binpb" }]);
    let volume = json!({ "name": "weft-contracts", "configMap": { "name": "users.contracts-1", "items": items } });
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    assert_eq!((volumes.len(), &volumes[2]), (3, &volume));
    // A mount with a `subPath` would not follow the ConfigMap.
    let mount = json!({ "name": "weft-contracts", "mountPath": "/var/run/weft/contracts", "readOnly": true });
    let mounts = sidecar(&pod)["volumeMounts"].clone();
    assert_eq!((mounts.as_array().unwrap().len(), &mounts[2]), (3, &mount));
    // Nobody else needs them.
    assert!(pod["spec"]["containers"].as_array().unwrap().iter().all(|other| other.get("volumeMounts").is_none()));
    assert_eq!(inject(&Config::default(), &shop(), &pod), Ok(Decision::Skip(Reason::HasSidecar)));
}

#[test]
fn contracts_of_a_config_map_are_for_an_application_of_grpc() {
    for name in ["", "Users", "a_b", "-a", "a..b", "users/contracts", "users,orders", "users "] {
        let told = refused(&with(json!({ KEY: name })));
        let expected =
            format!("metadata.annotations[{KEY}]: found the text {name:?}; allowed: the name of a ConfigMap: a-z,");
        assert!(told.starts_with(&expected), "{told}");
    }
    let http = refused(&with(json!({ KEY: "users", "weft.dev/protocol": "http1" })));
    let expected =
        format!("metadata.annotations[{KEY}]: found an application that speaks http1; allowed: for one that");
    assert!(http.starts_with(&expected), "{http}");
    let mut pod = with(json!({ KEY: "users" }));
    pod["spec"]["containers"][0]["ports"] = json!([]);
    let told = refused(&pod);
    assert!(told.starts_with(&format!("metadata.annotations[{KEY}]: found no port that it is of")), "{told}");
}

#[test]
fn the_volume_of_contracts_has_its_name_alone() {
    let mut pod = with(json!({ KEY: "users" }));
    pod["spec"]["volumes"] = json!([{ "name": "data" }, { "name": "weft-contracts" }]);
    let told = refused(&pod);
    assert!(
        told.starts_with("spec.volumes[1].name: found the text \"weft-contracts\"; allowed: another name"),
        "{told}"
    );
    // The name is free in pods that have no such volume.
    pod["metadata"]["annotations"] = json!({});
    injected(&pod);
}
