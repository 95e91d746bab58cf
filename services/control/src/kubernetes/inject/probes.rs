//! Probes and hooks of the application's containers, which come to the pod's address. There they would find the sidecar, which
//! takes mutual TLS only, or nothing, if the application listens on loopback. So they are sent to a port of the sidecar that
//! takes plain requests, under a path that names the container and the probe. The sidecar gets the originals and makes them.
//!
//! What runs in the container itself (`exec`), and what goes to another host, stays as it is.

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};
use weft_mesh::{
    limits,
    names::{is_label, port},
    ranges::Ports,
};

use super::{
    super::names::{CONTAINER, CONTAINER_REDIRECT},
    patch::Patch,
    pod::{Container, Error, Pod},
    redirect::Redirect,
    settings::{GRACE_SECONDS, SIDECAR_PORTS},
};

/// The variable of the sidecar that has the originals.
const VARIABLE: &str = "WEFT_PROBES";
/// A probe's field, and what the sidecar calls it.
const PROBES: [(&str, &str); 3] =
    [("startupProbe", "startup"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")];
const PRE_STOP: &str = "preStop";
const POST_START: &str = "postStart";
/// How an application is asked over the network.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
/// The longest path of a probe.
const PATH_BYTES: usize = 8 * 1024;
/// The longest time of a probe, a day.
const TIMEOUT: u64 = 24 * 3600;

const PORT: &str = "a whole number from 1 to 65535, or the name of a port of the container";

/// The originals, by container and kind: what a sidecar gets.
#[derive(Debug, Default)]
pub(super) struct Originals(Map<String, Value>);

/// How the pod's connections are redirected, as far as hooks are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reach<'a> {
    /// They are not.
    Direct,
    /// But for connections to these ports of the pod.
    But(&'a [Ports]),
}

impl<'a> Reach<'a> {
    pub(super) fn of(redirect: Option<&'a Redirect>) -> Self {
        redirect.map_or(Self::Direct, |redirect| Self::But(&redirect.open_ports))
    }
}

/// Has the sidecar make the probes of all other containers.
pub(super) fn rewrite(pod: &Pod<'_>, reach: Reach<'_>, patch: &mut Patch) -> Result<Originals, Error> {
    let mut originals = Map::new();
    for container in pod.all_containers()? {
        if container.has_name(CONTAINER) || container.has_name(CONTAINER_REDIRECT) {
            continue;
        }
        let mut of_container = Map::new();
        for (field, kind) in PROBES {
            let Some(probe) = container.get(field) else { continue };
            let Some(mut original) = original(&container, field, probe)? else { continue };
            if let Some(seconds) = timeout(&container, field, probe)? {
                original.insert("timeoutSeconds".to_owned(), json!(seconds));
            }
            put(&container, &[field], probe, kind, patch)?;
            of_container.insert(kind.to_owned(), Value::Object(original));
        }
        if let Some(original) = hooks(pod, &container, reach, patch)? {
            of_container.insert(PRE_STOP.to_owned(), original);
        }
        if !of_container.is_empty() {
            originals.insert(name(&container)?.to_owned(), Value::Object(of_container));
        }
    }
    let originals = Originals(originals);
    originals.text()?;
    Ok(originals)
}

/// The hooks of a redirected container. Returns the original of the one that the sidecar makes.
fn hooks(
    pod: &Pod<'_>,
    container: &Container<'_>,
    reach: Reach<'_>,
    patch: &mut Patch,
) -> Result<Option<Value>, Error> {
    let (Reach::But(excluded), Some(lifecycle)) = (reach, container.get("lifecycle")) else { return Ok(None) };
    let mut made = None;
    for hook in [POST_START, PRE_STOP] {
        // The kubelet knows no other hook that goes to a port.
        let Some(handler) = lifecycle.get(hook).filter(|handler| handler.get("httpGet").is_some_and(Value::is_object))
        else {
            continue;
        };
        let field = format!("lifecycle.{hook}");
        let Some(mut original) = original(container, &field, handler)? else { continue };
        let port =
            original.get("httpGet").and_then(|of| of.get("port")?.as_u64()).and_then(|port| u16::try_from(port).ok());
        if port.is_some_and(|port| excluded.iter().any(|ports| ports.holds(port))) {
            continue;
        }
        if hook == POST_START {
            // The sidecar can't know that the kubelet asks and not somebody else, who should not be able to repeat it.
            let text = "found a request to the pod, whose connections are redirected; allowed: exec, or a port of \
                        weft.dev/exclude-inbound-ports";
            return Err(Error::new(container.field(&format!("{field}.httpGet")), text));
        }
        let grace = pod.spec("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE_SECONDS);
        original.insert("timeoutSeconds".to_owned(), json!(grace.clamp(1, TIMEOUT)));
        put(container, &["lifecycle", hook], handler, PRE_STOP, patch)?;
        made = Some(Value::Object(original));
    }
    Ok(made)
}

/// Puts the request to the sidecar in the place of a handler. All else of the probe stays.
fn put(container: &Container<'_>, path: &[&str], probe: &Value, kind: &str, patch: &mut Patch) -> Result<(), Error> {
    let mut probe = probe.clone();
    if let Some(fields) = probe.as_object_mut() {
        fields.retain(|key, _| !HANDLERS.contains(&key.as_str()));
        let path = format!("/probes/{}/{kind}", name(container)?);
        fields.insert("httpGet".to_owned(), json!({ "path": path, "port": port::METRICS, "scheme": "HTTP" }));
    }
    let (list, index) = container.place();
    patch.put(&[&["spec", list, &index.to_string()], path].concat(), probe);
    Ok(())
}

/// The container's name, which is in a path.
fn name<'a>(container: &Container<'a>) -> Result<&'a str, Error> {
    let name = container.get("name").unwrap_or(&Value::Null);
    let allowed = "1 to 63 of a-z, 0-9 and -, no - at either end";
    name.as_str().filter(|name| is_label(name)).ok_or_else(|| Error::found(container.field("name"), name, allowed))
}

/// What a probe asks, for the sidecar; `None` if it is to stay as it is.
fn original(container: &Container<'_>, field: &str, probe: &Value) -> Result<Option<Map<String, Value>>, Error> {
    let Some((kind, handler)) =
        HANDLERS.iter().find_map(|kind| Some((*kind, probe.get(kind).filter(|of| !of.is_null())?)))
    else {
        return Ok(None);
    };
    let at = |of: &str| container.field(&format!("{field}.{kind}{of}"));
    if !handler.is_object() {
        return Err(Error::found(at(""), handler, "a table of keys and values"));
    }
    // It does not go to the pod.
    if text(handler, "host", &at)?.is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let port = port_of(container, handler.get("port").unwrap_or(&Value::Null), &at)?;
    // What asks the sidecar itself reaches it. So does a probe that is sent there already.
    if SIDECAR_PORTS.contains(&port) {
        return Ok(None);
    }
    let mut original = Map::from_iter([("port".to_owned(), json!(port))]);
    match kind {
        "httpGet" => {
            let path = text(handler, "path", &at)?.unwrap_or_default();
            if path.len() > PATH_BYTES {
                let problem = format!("found {} bytes; allowed: at most {PATH_BYTES}", path.len());
                return Err(Error::new(at(".path"), problem));
            }
            original.insert("path".to_owned(), json!(path));
            match text(handler, "scheme", &at)?.unwrap_or_default() {
                "" | "HTTP" => {}
                "HTTPS" => drop(original.insert("scheme".to_owned(), json!("HTTPS"))),
                other => return Err(Error::found(at(".scheme"), &json!(other), "HTTP, HTTPS")),
            }
            let headers = headers(handler, &at)?;
            if !headers.is_empty() {
                original.insert("headers".to_owned(), Value::Array(headers));
            }
        }
        "grpc" => {
            let service = text(handler, "service", &at)?.unwrap_or_default();
            original.insert("service".to_owned(), json!(service));
        }
        _ => {}
    }
    Ok(Some(Map::from_iter([(kind.to_owned(), Value::Object(original))])))
}

fn text<'a>(of: &'a Value, key: &str, at: &impl Fn(&str) -> String) -> Result<Option<&'a str>, Error> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Error::found(at(&format!(".{key}")), other, "a text")),
    }
}

/// The number of a port, which may be named.
fn port_of(container: &Container<'_>, port: &Value, at: &impl Fn(&str) -> String) -> Result<u16, Error> {
    let is_port = |number: &u64| (1..=u64::from(u16::MAX)).contains(number);
    let number = match port {
        Value::String(name) => {
            let ports = container.get("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let named = ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(name));
            named.map_or_else(|| name.parse().ok(), |port| port.get("containerPort").and_then(Value::as_u64))
        }
        other => other.as_u64(),
    };
    let number = number.filter(is_port).and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| Error::found(at(".port"), port, PORT))
}

fn headers(handler: &Value, at: &impl Fn(&str) -> String) -> Result<Vec<Value>, Error> {
    let given = match handler.get("httpHeaders") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(given)) => given,
        Some(other) => return Err(Error::found(at(".httpHeaders"), other, "a list")),
    };
    let read = |(index, header): (usize, &Value)| {
        let get = |key: &str| header.get(key).and_then(Value::as_str).unwrap_or_default();
        let (name, value) = (get("name"), get("value"));
        let of = |key: &str| at(&format!(".httpHeaders[{index}].{key}"));
        if name.parse::<HeaderName>().is_err() {
            return Err(Error::found(of("name"), &json!(name), "the name of an HTTP header"));
        }
        if HeaderValue::from_bytes(value.as_bytes()).is_err() {
            return Err(Error::found(of("value"), &json!(value), "the value of an HTTP header"));
        }
        Ok(json!([name, value]))
    };
    given.iter().enumerate().map(read).collect()
}

fn timeout(container: &Container<'_>, field: &str, probe: &Value) -> Result<Option<u64>, Error> {
    match probe.get("timeoutSeconds") {
        None | Some(Value::Null) => Ok(None),
        // The API server takes 0 for the default.
        Some(found) => match found.as_u64() {
            Some(seconds) => Ok((seconds > 0).then(|| seconds.min(TIMEOUT))),
            None => Err(Error::found(container.field(&format!("{field}.timeoutSeconds")), found, "a whole number")),
        },
    }
}

impl Originals {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The variable of a new sidecar.
    pub(super) fn variable(&self) -> Result<Option<Value>, Error> {
        Ok(if self.is_empty() { None } else { Some(json!({ "name": VARIABLE, "value": self.text()? })) })
    }

    /// Adds them to those of a sidecar that is there. Another webhook has added their containers after it.
    pub(super) fn add_to_sidecar(mut self, pod: &Pod<'_>, patch: &mut Patch) -> Result<(), Error> {
        let inits = pod.containers("initContainers")?;
        let Some(sidecar) = inits.iter().find(|container| container.is_sidecar()).filter(|_| !self.is_empty()) else {
            return Ok(());
        };
        let (list, index) = sidecar.place();
        let (index, variables) = (index.to_string(), sidecar.env()?);
        let env = ["spec", list, &index, "env"];
        let Some(at) = variables.iter().position(|variable| variable.get("name").is_some_and(|name| name == VARIABLE))
        else {
            patch.append(pod.value(), &env, Vec::from_iter(self.variable()?));
            return Ok(());
        };
        let present = variables[at].get("value").and_then(Value::as_str).unwrap_or_default();
        let present: Map<String, Value> = serde_json::from_str(present).unwrap_or_default();
        for (container, probes) in present {
            match self.0.get_mut(&container).and_then(Value::as_object_mut) {
                // A probe may have been added to a container.
                Some(new) => new.extend(probes.as_object().cloned().unwrap_or_default()),
                None => drop(self.0.insert(container, probes)),
            }
        }
        patch.put(&[&env[..], &[&at.to_string(), "value"]].concat(), json!(self.text()?));
        Ok(())
    }

    /// As JSON without the character that refers to other variables.
    fn text(&self) -> Result<String, Error> {
        let text = Value::Object(self.0.clone()).to_string().replace('$', "\\u0024");
        let most = limits::APP_PROBES_BYTES;
        if text.len() > most {
            let problem = format!("found probes of {} bytes, as JSON; allowed: at most {most}", text.len());
            return Err(Error::new("spec.containers", problem));
        }
        Ok(text)
    }
}
