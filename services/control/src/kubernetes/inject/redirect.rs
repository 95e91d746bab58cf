//! Redirection: the connections of a pod go through its sidecar, so that its programs need not know of the mesh and nobody
//! reaches them but through it.
//!
//! An init container runs `weft redirect` before all others. Its rules leave alone what the sidecar sends itself, by the
//! sidecar's user. So no other container may run as that user.

use serde_json::{Value, json};
use weft_mesh::ranges::{Cidr, Ports};

use super::{
    super::names::{CONTAINER, CONTAINER_REDIRECT, DISABLED, ENABLED, annotation},
    annotations::{field, parsed},
    config::{Config, enabled},
    pod::{Container, Error, Pod},
};

/// The user that the sidecar of a redirected pod runs as. It is not that of other sidecars, 65532: images without root
/// often run as that user, and a pod does not say which user its image has.
pub(super) const SIDECAR_UID: u32 = 15_001;
/// More than anybody needs. The rules of the kernel are made from them.
const ENTRIES: usize = 64;

const PORTS: &str = "up to 64 ports or ranges of ports with commas between them, such as 80,8000-8100";
const RANGES: &str = "up to 64 networks with commas between them, such as 10.0.0.0/8,192.0.2.7";

/// See the module.
#[derive(Debug)]
pub(super) struct Redirect {
    /// As the flag `--outside` of a sidecar.
    pub(super) outside: Option<&'static str>,
    /// Ports that the kubelet reaches.
    pub(super) open_ports: Vec<Ports>,
    /// Flags of `weft redirect` with their values.
    exclusions: Vec<(&'static str, String)>,
}

impl Redirect {
    /// What the pod says, and the configuration where the pod says nothing.
    pub(super) fn read(config: &Config, pod: &Pod<'_>) -> Result<Option<Self>, Error> {
        let given = parsed(pod, annotation::REDIRECT, &format!("{ENABLED}, {DISABLED}"), |text| enabled(text).ok())?;
        let outside = parsed(pod, annotation::OUTSIDE, "allow, deny", |text| {
            ["allow", "deny"].into_iter().find(|of| *of == text)
        })?;
        let open_ports = list::<Ports>(pod, annotation::EXCLUDE_INBOUND_PORTS, PORTS)?;
        let exclusions = [
            ("--exclude-inbound-ports", joined(&open_ports)),
            ("--exclude-outbound-ports", joined(&list::<Ports>(pod, annotation::EXCLUDE_OUTBOUND_PORTS, PORTS)?)),
            ("--exclude-outbound-ranges", joined(&list::<Cidr>(pod, annotation::EXCLUDE_OUTBOUND_RANGES, RANGES)?)),
        ];
        if given.unwrap_or(config.redirect) {
            let exclusions = exclusions.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            return Ok(Some(Self { outside, open_ports, exclusions }));
        }
        // Nobody should believe in protection that is not there.
        for key in [
            annotation::EXCLUDE_INBOUND_PORTS,
            annotation::EXCLUDE_OUTBOUND_PORTS,
            annotation::EXCLUDE_OUTBOUND_RANGES,
            annotation::OUTSIDE,
        ] {
            if pod.annotation(key)?.is_some() {
                let text =
                    format!("found no redirection that it is for; allowed: with {}: {ENABLED}", annotation::REDIRECT);
                return Err(Error::new(field(key), text));
            }
        }
        Ok(None)
    }

    /// The init container.
    pub(super) fn container(&self, config: &Config) -> Value {
        let mut args = vec!["redirect".to_owned(), "--uid".to_owned(), SIDECAR_UID.to_string()];
        for (flag, value) in &self.exclusions {
            args.extend([(*flag).to_owned(), value.clone()]);
        }
        json!({
            "name": CONTAINER_REDIRECT,
            "image": config.redirect_image,
            "imagePullPolicy": config.image_pull_policy.to_string(),
            "args": args,
            // It ends within moments. A pod needs as much as the largest of its init containers, so this takes no room.
            "resources": {
                "requests": { "cpu": "10m", "memory": "16Mi" },
                "limits": { "cpu": "1", "memory": "64Mi" },
            },
            // Rules of the pod's own network, and nothing else. Only root gets a capability that is added.
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": false,
                "runAsUser": 0,
                "runAsGroup": 0,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
        })
    }
}

/// The entries of an annotation's value; none if it is absent.
fn list<T: std::str::FromStr>(pod: &Pod<'_>, key: &str, allowed: &str) -> Result<Vec<T>, Error> {
    let read = |text: &str| {
        let entries = text.split(',').take(ENTRIES + 1).map(|entry| entry.trim().parse().ok());
        entries.collect::<Option<Vec<T>>>().filter(|entries| entries.len() <= ENTRIES)
    };
    Ok(parsed(pod, key, allowed, read)?.unwrap_or_default())
}

/// As the value of a flag.
fn joined(entries: &[impl ToString]) -> String {
    let texts: Vec<String> = entries.iter().map(ToString::to_string).collect();
    texts.join(",")
}

/// Checks a pod that is redirected, or is about to be: no container but the sidecar runs as the sidecar's user. Its
/// connections would go past the sidecar.
pub(super) fn check_users(pod: &Pod<'_>) -> Result<(), Error> {
    let allowed = format!("another user: that of the sidecar is {SIDECAR_UID}, and its connections are not redirected");
    let of_pod = pod.spec("securityContext").and_then(user);
    for container in pod.all_containers()? {
        if container.has_name(CONTAINER) || container.has_name(CONTAINER_REDIRECT) {
            continue;
        }
        match (container.get("securityContext").and_then(user), of_pod) {
            (Some(own), _) if is_sidecars(own) => {
                return Err(Error::found(container.field("securityContext.runAsUser"), own, &allowed));
            }
            (None, Some(of_pod)) if is_sidecars(of_pod) => {
                return Err(Error::found("spec.securityContext.runAsUser", of_pod, &allowed));
            }
            _ => {}
        }
    }
    Ok(())
}

fn user(context: &Value) -> Option<&Value> {
    context.get("runAsUser").filter(|user| !user.is_null())
}

fn is_sidecars(user: &Value) -> bool {
    user.as_u64() == Some(SIDECAR_UID.into())
}

/// Checks that no other container has the name of the one that is added.
pub(super) fn check_name(pod: &Pod<'_>) -> Result<(), Error> {
    match pod.all_containers()?.iter().find(|container| container.has_name(CONTAINER_REDIRECT)) {
        None => Ok(()),
        Some(taken) => {
            let allowed = "another name, as the container that redirects the pod's connections has this one";
            Err(Error::found(taken.field("name"), &Value::from(CONTAINER_REDIRECT), allowed))
        }
    }
}

/// Checks that a pod that has its sidecar, and should be redirected, is. It may have got its sidecar before that was asked for, or
/// elsewhere.
pub(super) fn check_redirected(pod: &Pod<'_>) -> Result<(), Error> {
    let inits = pod.containers("initContainers")?;
    let sidecar = inits.iter().position(Container::is_sidecar);
    let is_before =
        sidecar.and_then(|at| inits.get(at.checked_sub(1)?)).is_some_and(|it| it.has_name(CONTAINER_REDIRECT));
    let own = sidecar.and_then(|at| inits[at].get("securityContext").and_then(user));
    if is_before && own.is_some_and(is_sidecars) {
        return Ok(());
    }
    let text = format!(
        "found a sidecar without the redirection that the pod is to have; allowed: the pod as it was before it got a sidecar, \
         or with {}: {DISABLED}",
        annotation::REDIRECT
    );
    Err(Error::new("spec.initContainers", text))
}
