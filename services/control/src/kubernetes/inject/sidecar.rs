//! The sidecar's container and its volumes.

use serde_json::{Value, json};
use weft_mesh::names::port;

use super::{
    super::names::{
        CONFIG_MAP_TRUST, CONTAINER, DESCRIPTORS, IMPLEMENTED, TOKEN, TOKEN_AUDIENCE, TRUST_BUNDLE, VOLUME_CONTRACTS,
        VOLUME_TOKEN, VOLUME_TRUST,
    },
    config::{Amounts, Config},
    patch::Patch,
    pod::{Error, Pod},
    probes::Originals,
    redirect,
    settings::{Protocol, Settings},
};

const TRUST_DIR: &str = "/var/run/weft/trust";
const TOKEN_DIR: &str = "/var/run/weft/token";
const CONTRACTS_DIR: &str = "/var/run/weft/contracts";
/// The program in the image, which has nothing else in it.
const PROGRAM: &str = "/weft-sidecar";
/// The user that the sidecar runs as if the pod is not redirected.
const UID: u32 = 65_532;
/// How long a token is good for. The kubelet replaces it in time.
const TOKEN_SECONDS: u32 = 3_600;
/// How often the kubelet may ask for the start before it restarts the sidecar, once a second: four hours. A restart does
/// not help while the control plane is away.
const STARTUP_TRIES: u32 = 14_400;

/// Checks that no other container has the token: it would be the sidecar's identity in the hands of the application.
pub(super) fn check_mounts(pod: &Pod<'_>) -> Result<(), Error> {
    for container in pod.all_containers()? {
        if let Some(index) = container.mount_of(VOLUME_TOKEN)?
            && !container.is_sidecar()
        {
            let field = container.field(&format!("volumeMounts[{index}].name"));
            let allowed = "another volume, as only the sidecar may have its token";
            return Err(Error::found(field, &Value::from(VOLUME_TOKEN), allowed));
        }
    }
    Ok(())
}

/// Adds the container before all others, so that the pod's own init containers can call, and its volumes. Only the one
/// that redirects comes before it.
pub(super) fn add(
    config: &Config,
    settings: &Settings,
    originals: &Originals,
    pod: &Pod<'_>,
    patch: &mut Patch,
) -> Result<(), Error> {
    let added = volumes(settings);
    for (index, volume) in pod.spec_list("volumes")?.iter().enumerate() {
        let name = volume.get("name").unwrap_or(&Value::Null);
        if added.iter().any(|added| added["name"] == *name) {
            let allowed = "another name, as the sidecar has a volume of this one";
            return Err(Error::found(format!("spec.volumes[{index}].name"), name, allowed));
        }
    }
    let mut containers = Vec::from_iter(settings.redirect.as_ref().map(|redirect| redirect.container(config)));
    containers.push(container(config, settings, originals)?);
    patch.prepend(pod.value(), &["spec", "initContainers"], containers);
    patch.append(pod.value(), &["spec", "volumes"], added);
    Ok(())
}

fn container(config: &Config, settings: &Settings, originals: &Originals) -> Result<Value, Error> {
    let get = |path: &str| json!({ "path": path, "port": port::METRICS });
    let uid = if settings.redirect.is_some() { redirect::SIDECAR_UID } else { UID };
    Ok(json!({
        "name": CONTAINER,
        "image": config.sidecar_image,
        "imagePullPolicy": config.image_pull_policy.to_string(),
        // A native sidecar: it runs beside the containers, ends after them, and does not keep a Job from ending.
        "restartPolicy": "Always",
        "env": variables(config, settings, originals)?,
        "ports": [{ "name": "weft-metrics", "containerPort": port::METRICS, "protocol": "TCP" }],
        "resources": {
            "requests": amounts(&settings.resources.requests),
            "limits": amounts(&settings.resources.limits),
        },
        // The application starts only after this: so it must not depend on the application.
        "startupProbe": { "httpGet": get("/startz"), "periodSeconds": 1, "failureThreshold": STARTUP_TRIES },
        "readinessProbe": { "httpGet": get("/readyz"), "periodSeconds": 2, "failureThreshold": 2 },
        // At the pod's deletion, beside the application's own. SIGTERM comes only after the application has gone.
        "lifecycle": { "preStop": { "exec": { "command": [PROGRAM, "drain"] } } },
        // What PodSecurity's level `restricted` asks, and a root that can't be written.
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": uid,
            "runAsGroup": uid,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": mounts(settings),
    }))
}

/// The ConfigMap with the application's contracts, if the pod names one.
fn contracts(settings: &Settings) -> Option<&str> {
    settings.app.as_ref()?.contracts.as_deref()
}

/// Whole volumes: a `subPath` would stay as it was when a ConfigMap changes.
fn mounts(settings: &Settings) -> Vec<Value> {
    let mount = |name: &str, path: &str| json!({ "name": name, "mountPath": path, "readOnly": true });
    let mut mounts = vec![mount(VOLUME_TOKEN, TOKEN_DIR), mount(VOLUME_TRUST, TRUST_DIR)];
    mounts.extend(contracts(settings).map(|_| mount(VOLUME_CONTRACTS, CONTRACTS_DIR)));
    mounts
}

fn amounts(of: &Amounts) -> Value {
    json!({ "cpu": of.cpu.as_str(), "memory": of.memory.as_str() })
}

/// The flags of the sidecar, as the variables that they may be given by.
fn variables(config: &Config, settings: &Settings, originals: &Originals) -> Result<Vec<Value>, Error> {
    let value = |name: &str, value: String| json!({ "name": name, "value": value });
    let of_pod = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut variables = vec![of_pod("WEFT_NAMESPACE", "metadata.namespace")];
    if let Some(app) = &settings.app {
        variables.extend([
            of_pod("WEFT_SERVICE", "spec.serviceAccountName"),
            value("WEFT_APP", format!("127.0.0.1:{}", app.port)),
            value("WEFT_PROTOCOL", app.protocol.as_str().to_owned()),
        ]);
        variables.extend(app.health.clone().map(|health| value("WEFT_HEALTH", health)));
        match &app.contracts {
            Some(map) => variables.extend([
                value("WEFT_DESCRIPTORS", format!("{CONTRACTS_DIR}/{DESCRIPTORS}")),
                // Without the key the variable is not set.
                json!({
                    "name": "WEFT_CONTRACTS",
                    "valueFrom": { "configMapKeyRef": { "name": map, "key": IMPLEMENTED, "optional": true } },
                }),
            ]),
            None if app.protocol == Protocol::Grpc => variables.push(value("WEFT_ASK_CONTRACTS", true.to_string())),
            None => {}
        }
    }
    // Probes go to the pod's address too.
    if settings.app.is_some() || !originals.is_empty() {
        // A variable may refer only to those before it.
        variables.push(of_pod("POD_IP", "status.podIP"));
        variables.push(value("WEFT_ADVERTISE", format!("$(POD_IP):{}", port::INBOUND)));
    }
    variables.extend([
        value("WEFT_CONTROL_PLANE", config.control_plane.clone()),
        value("WEFT_TRUST_DOMAIN", config.trust_domain.to_string()),
        value("WEFT_TRUST_BUNDLE", format!("{TRUST_DIR}/{TRUST_BUNDLE}")),
        value("WEFT_JOIN_TOKEN_FILE", format!("{TOKEN_DIR}/{TOKEN}")),
        value("WEFT_MEMORY", settings.memory.to_string()),
        value("WEFT_DRAIN_SECONDS", settings.drain_seconds.to_string()),
        value("WEFT_SAMPLE_RATIO", settings.sample_ratio.to_string()),
        value("WEFT_LOG_FORMAT", settings.log_format.to_string()),
    ]);
    if let Some(redirect) = &settings.redirect {
        variables.push(value("WEFT_INTERCEPT", true.to_string()));
        variables.extend(redirect.outside.map(|outside| value("WEFT_OUTSIDE", outside.to_owned())));
    }
    if !config.otlp.is_empty() {
        variables.push(value("WEFT_OTLP", config.otlp.join(",")));
    }
    variables.extend(originals.variable()?);
    Ok(variables)
}

fn volumes(settings: &Settings) -> Vec<Value> {
    let token = json!({
        "serviceAccountToken": { "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN },
    });
    let mut volumes = vec![
        json!({ "name": VOLUME_TOKEN, "projected": { "sources": [token] } }),
        // The pod waits until the control plane has made it.
        json!({ "name": VOLUME_TRUST, "configMap": { "name": CONFIG_MAP_TRUST } }),
    ];
    volumes.extend(contracts(settings).map(|map| {
        // With this list the pod waits for the key, too: without its contracts the application would have no rules.
        let items = json!([{ "key": DESCRIPTORS, "path": DESCRIPTORS }]);
        json!({ "name": VOLUME_CONTRACTS, "configMap": { "name": map, "items": items } })
    }));
    volumes
}
