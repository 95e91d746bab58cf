//! Contracts from a ConfigMap, for an application without server reflection, and whose a contract is.

use std::fs;

use serde_json::{Value, json};

use super::{
    LIMIT,
    cluster::{Cluster, container},
    shop, whole_shop,
};

/// An application without server reflection: its pods, and Services that select them.
struct Echo<'a> {
    cluster: &'a Cluster,
    /// Of its account, its Deployment, its ConfigMap and its first Service.
    name: &'static str,
    contract: String,
}

impl<'a> Echo<'a> {
    /// Its pods wait for the ConfigMap.
    fn new(cluster: &'a Cluster, name: &'static str, services: &[&str]) -> Self {
        let echo = Self { cluster, name, contract: format!("test.{name}.v1.Echo") };
        for service in services {
            cluster.kubectl(&["-n", "shop", "delete", "--ignore-not-found", "service", service]);
        }
        for kind in ["deployment", "configmap"] {
            cluster.kubectl(&["-n", "shop", "delete", "--ignore-not-found", kind, name]);
        }
        let meta = |name: &str| json!({"name": name, "namespace": "shop"});
        let mut app = container("app", "weft-test/app:1", &[]);
        app["env"] = json!([{"name": "PORT", "value": "9000"}]);
        app["ports"] = json!([{"containerPort": 9000, "name": "grpc"}]);
        let template = json!({
            "metadata": {"labels": {"test": name}, "annotations": {"weft.dev/contracts": name}},
            "spec": {"serviceAccountName": name, "containers": [app]},
        });
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(name)}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(name),
                "spec": {"selector": {"matchLabels": {"test": name}}, "template": template}}),
        ];
        objects.extend(services.iter().map(|service| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(service),
                "spec": {"selector": {"test": name}, "ports": [{"name": "grpc", "port": 9000}]}})
        }));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        cluster.try_kubectl(&["apply", "-f", "-"], &list.to_string()).expect("it is applied");
        echo
    }

    /// Puts its contract on the cluster: these accounts may call.
    fn push(&self, callers: &[&str]) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("echo.proto");
        let text = format!(
            "syntax = \"proto3\";\npackage test.{}.v1;\nimport \"weft/options/v1/options.proto\";\nmessage Text {{ string \
             text = 1; }}\nservice Echo {{\n  rpc Say(Text) returns (Text) {{\n    option (weft.options.v1.method) = {{ \
             timeout: {{ seconds: 2 }} access: {{ allow: {callers:?} }} }};\n  }}\n}}\n",
            self.name
        );
        fs::write(&file, text).expect("it can be written");
        let [folder, file] = [folder.path(), &file].map(|path| path.to_str().expect("a path of text").to_owned());
        let args = ["contracts", "push", self.name, "-n", "shop", "--proto-path", &folder, &file];
        let told = self.cluster.weft_there(&args);
        let out = String::from_utf8_lossy(&told.stdout);
        assert!(told.status.success() && out.contains("wrote 1 contract into the ConfigMap shop/"), "{told:?}");
    }

    fn is_ready(&self) {
        let name = format!("deployment/{}", self.name);
        self.cluster.kubectl(&["-n", "shop", "rollout", "status", &name, "--timeout=240s"]);
    }

    /// Calls it by its contract, with a header.
    fn call(&self, account: &str, header: &str) -> Result<String, String> {
        let method = format!("{}/Say", self.contract);
        self.cluster.call("shop", account, &["call", "-H", header, &method, r#"{"text":"hello"}"#])
    }

    /// Waits until a caller is answered.
    fn answers(&self, account: &str) {
        self.cluster.until(&format!("{} answers {account}", self.name), LIMIT, || {
            let told = self.call(account, "x-none: 1")?;
            if told.contains("hello") { Ok(()) } else { Err(told) }
        });
    }

    /// Waits until `weft cluster check` says that this Service has the contract.
    fn is_of(&self, service: &str) {
        let said = format!("{}: {service}.shop has it", self.contract);
        self.cluster.until(&said, LIMIT, || {
            let told = self.cluster.weft_there(&["cluster", "check", "--json"]);
            let all: Value = serde_json::from_slice(&told.stdout).map_err(|error| format!("{error}: {told:?}"))?;
            let findings = all["findings"].as_array().into_iter().flatten();
            let of = findings.filter(|finding| finding["check"] == "contracts").map(ToString::to_string);
            let of: String = of.collect();
            if of.contains(&said) { Ok(()) } else { Err(of) }
        });
    }
}

impl Cluster {
    /// Whether one of these objects of the shop has an Event with this reason, and a text in it. Objects of the same names may have
    /// had one in an earlier run.
    fn has_event(&self, objects: &[&str], reason: &str, text: &str) -> Result<(), String> {
        let get = |what: &[&str]| -> Vec<Value> {
            let told = self.kubectl(&[&["-n", "shop", "get", "-o", "json"], what].concat());
            let list: Value = serde_json::from_str(&told).expect("kubectl prints JSON");
            list["items"].as_array().cloned().unwrap_or_default()
        };
        let uids: Vec<Value> = get(objects).iter().map(|object| object["metadata"]["uid"].clone()).collect();
        let events = get(&["events", "--field-selector", &format!("reason={reason}")]);
        let is_it = |event: &Value| {
            let says = event["message"].as_str().is_some_and(|message| message.contains(text));
            says && uids.contains(&event["involvedObject"]["uid"])
        };
        if events.iter().any(is_it) { Ok(()) } else { Err(format!("{uids:?}: {events:?}")) }
    }
}

#[test]
fn an_application_without_reflection_has_the_contract_of_its_config_map() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let echo = Echo::new(cluster, "echo", &["echo"]);
    // Without it the pod would have no rules, so it waits, and its Event says for what.
    cluster.until("an Event of its pod", LIMIT, || {
        cluster.has_event(&["pods", "-l", "test=echo"], "FailedMount", "configmap \"echo\" not found")
    });
    echo.push(&["keyboard"]);
    echo.is_ready();
    echo.answers("keyboard");
    let refused = echo.call("stranger", "x-none: 1").expect_err("nobody named a stranger");
    assert!(refused.contains("PERMISSION_DENIED") && refused.contains("`access`"), "{refused}");
    let late = echo.call("keyboard", "x-do: sleep:60000").expect_err("it is late");
    assert!(late.contains("DEADLINE_EXCEEDED"), "{late}");
    // Pods that run follow a change.
    echo.push(&["keyboard", "stranger"]);
    echo.answers("stranger");
}

#[test]
fn objects_say_which_of_two_services_has_a_contract() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    let echo = Echo::new(cluster, "choir", &["choir", "choir-canary"]);
    echo.push(&["keyboard"]);
    echo.is_ready();
    echo.answers("keyboard");
    echo.is_of("choir");
    let annotate = |text: &str| {
        let said = format!("weft.dev/contracts={text}");
        cluster.kubectl(&["-n", "shop", "annotate", "--overwrite", "service", "choir-canary", &said]);
    };
    annotate("test choir");
    let mut tries = 0;
    cluster.until("an Event of the Service", LIMIT, || {
        // Other objects of the namespace may have used up its Events of this minute. A change has it looked at again.
        tries += 1;
        let again = format!("weft.test/tries={tries}");
        cluster.kubectl(&["-n", "shop", "annotate", "--overwrite", "service", "choir-canary", &again]);
        let canary = ["services", "--field-selector", "metadata.name=choir-canary"];
        cluster.has_event(&canary, "InvalidContracts", "found the text")
    });
    annotate(&echo.contract);
    echo.is_of("choir-canary");
    echo.answers("keyboard");
    // The mesh's owner decides otherwise.
    let contracts = json!({&echo.contract: "choir.shop"});
    let defaults = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshDefaults", "metadata": {"name": "default"},
        "spec": {"contracts": contracts}});
    cluster.apply(&defaults.to_string());
    echo.is_of("choir");
    cluster.kubectl(&["delete", "meshdefaults/default"]);
    // Now the annotation decides again.
    echo.is_of("choir-canary");
    cluster.kubectl(&["-n", "shop", "delete", "deployment/choir", "service/choir", "service/choir-canary"]);
}
