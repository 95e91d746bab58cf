//! The value of `--probes`: the probes of the application's containers that the sidecar does in the kubelet's place, as
//! JSON. The keys are those of Kubernetes:
//!
//! ```json
//! {
//!   "web": {
//!     "readiness": { "httpGet": { "port": 8080, "path": "/up", "scheme": "HTTPS", "headers": [["x-from", "kubelet"]] } },
//!     "liveness": { "tcpSocket": { "port": 8080 }, "timeoutSeconds": 5 },
//!     "startup": { "grpc": { "port": 9000, "service": "shop" } },
//!     "preStop": { "httpGet": { "port": 8080, "path": "/stop" }, "timeoutSeconds": 30 }
//!   }
//! }
//! ```

use std::{collections::BTreeMap, fmt::Write as _, str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};
use serde_json::{Map, Value};
use weft_mesh::limits::APP_PROBES_BYTES as BYTES;

/// The longest time that a probe may take: a day, so that no sum of times overflows.
const TIMEOUT: std::ops::RangeInclusive<u64> = 1..=24 * 3600;
/// What Kubernetes takes if a probe does not say.
const DEFAULT_TIMEOUT: u64 = 1;

/// See the module. By container and kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes(pub(crate) BTreeMap<(String, ProbeKind), Probe>);

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
    /// No probe, but the hook that tells a container to stop.
    PreStop,
}

/// One probe.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probe {
    pub(crate) port: u16,
    pub(crate) how: How,
    pub(crate) timeout: Duration,
}

/// How the application is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum How {
    Http(HttpProbe),
    /// It accepts a TCP connection.
    Tcp,
    /// `grpc.health.v1.Health/Check` says that this service is serving; an empty name is the server as a whole.
    Grpc(String),
}

/// A GET request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpProbe {
    pub(crate) is_https: bool,
    pub(crate) path: PathAndQuery,
    pub(crate) headers: HeaderMap,
}

impl ProbeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::PreStop => "preStop",
        }
    }

    pub(crate) fn read(text: &str) -> Option<Self> {
        [Self::Startup, Self::Liveness, Self::Readiness, Self::PreStop].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > BYTES {
            return Err(format!("found {} bytes; allowed: at most {BYTES}", text.len()));
        }
        let value: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
        let mut probes = BTreeMap::new();
        for (container, kinds) in table(&value, "the value")? {
            for (kind, probe) in table(kinds, container)? {
                let at = format!("{container}.{kind}");
                let kind = ProbeKind::read(kind)
                    .ok_or_else(|| format!("{at}: unknown key; allowed: startup, liveness, readiness, preStop"))?;
                probes.insert((container.clone(), kind), probe_of(&at, probe)?);
            }
        }
        Ok(Self(probes))
    }
}

fn table<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("{at}: found {value}; allowed: a table"))
}

fn probe_of(at: &str, probe: &Value) -> Result<Probe, String> {
    let probe = table(probe, at)?;
    let timeout = number(at, probe, "timeoutSeconds", TIMEOUT)?.unwrap_or(DEFAULT_TIMEOUT);
    let (mut port, mut how) = (0_u16, None);
    for (key, value) in probe {
        let at = format!("{at}.{key}");
        let found = match key.as_str() {
            "timeoutSeconds" => continue,
            "httpGet" => How::Http(http_probe(&at, table(value, &at)?)?),
            "tcpSocket" => How::Tcp,
            "grpc" => How::Grpc(text(&at, table(value, &at)?, "service")?.unwrap_or_default().to_owned()),
            _ => return Err(format!("{at}: unknown key; allowed: httpGet, tcpSocket, grpc, timeoutSeconds")),
        };
        let given = number(&at, table(value, &at)?, "port", 1..=u64::from(u16::MAX))?;
        port = given.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| format!("{at}.port: missing"))?;
        if how.replace(found).is_some() {
            return Err(format!("{at}: found two; allowed: one of httpGet, tcpSocket, grpc"));
        }
    }
    let how = how.ok_or_else(|| format!("{at}: found nothing to ask; allowed: httpGet, tcpSocket, grpc"))?;
    Ok(Probe { port, how, timeout: Duration::from_secs(timeout) })
}

fn number(
    at: &str,
    of: &Map<String, Value>,
    key: &str,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, String> {
    let Some(value) = of.get(key) else { return Ok(None) };
    match value.as_u64().filter(|number| allowed.contains(number)) {
        Some(number) => Ok(Some(number)),
        None => {
            let (least, most) = allowed.into_inner();
            Err(format!("{at}.{key}: found {value}; allowed: a whole number from {least} to {most}"))
        }
    }
}

fn text<'a>(at: &str, of: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match of.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{at}.{key}: found {other}; allowed: a text")),
    }
}

fn http_probe(at: &str, of: &Map<String, Value>) -> Result<HttpProbe, String> {
    let is_https = match text(at, of, "scheme")?.unwrap_or_default() {
        "" | "HTTP" => false,
        "HTTPS" => true,
        other => return Err(format!("{at}.scheme: found {other:?}; allowed: HTTP, HTTPS")),
    };
    let path = text(at, of, "path")?.unwrap_or_default();
    let path = path_of(path).ok_or_else(|| format!("{at}.path: found {path:?}; allowed: the path of a URL"))?;
    let mut headers = HeaderMap::new();
    let given = match of.get("headers") {
        None => &[][..],
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(format!("{at}.headers: found {other}; allowed: a list")),
    };
    for entry in given {
        let pair = entry.as_array().and_then(|pair| match &pair[..] {
            [name, value] => Some((name.as_str()?, value.as_str()?)),
            _ => None,
        });
        let header = pair.and_then(|(name, value)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
        });
        let (name, value) = header
            .ok_or_else(|| format!("{at}.headers: found {entry}; allowed: pairs of a header's name and value"))?;
        headers.append(name, value);
    }
    Ok(HttpProbe { is_https, path, headers })
}

/// The path of a request. As the kubelet does, `/` goes before it, what a URL can't contain is escaped, and a fragment is
/// left out.
pub(crate) fn path_of(given: &str) -> Option<PathAndQuery> {
    let given = given.split('#').next().unwrap_or_default();
    let mut path = String::with_capacity(given.len() + 1);
    if !given.starts_with('/') {
        path.push('/');
    }
    for byte in given.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            path.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_kubernetes_writes_it() {
        let text = r#"{"web":{
            "readiness":{"httpGet":{"port":8080,"path":"up?x=1#y","scheme":"HTTPS","headers":[["X-A","b"],["x-a","c"]]}},
            "liveness":{"tcpSocket":{"port":81},"timeoutSeconds":5},
            "startup":{"grpc":{"port":9000,"service":"shop"}},
            "preStop":{"httpGet":{"port":8080,"path":""}}},
            "other":{}}"#;
        let probes = text.parse::<Probes>().unwrap().0;
        let get = |kind| &probes[&("web".to_owned(), kind)];
        let How::Http(http) = &get(ProbeKind::Readiness).how else { panic!("{probes:?}") };
        assert_eq!((http.is_https, http.path.as_str()), (true, "/up?x=1"));
        assert_eq!(http.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["b", "c"]);
        let tcp = Probe { port: 81, how: How::Tcp, timeout: Duration::from_secs(5) };
        assert_eq!(get(ProbeKind::Liveness), &tcp);
        let grpc = Probe { port: 9000, how: How::Grpc("shop".into()), timeout: Duration::from_secs(1) };
        assert_eq!(get(ProbeKind::Startup), &grpc);
        let How::Http(http) = &get(ProbeKind::PreStop).how else { panic!("{probes:?}") };
        assert_eq!((http.is_https, http.path.as_str()), (false, "/"));
        assert_eq!(probes.len(), 4);
        assert_eq!("{}".parse::<Probes>().unwrap(), Probes::default());
    }

    #[test]
    fn a_path_is_escaped_as_the_kubelet_does() {
        for (given, expected) in [
            ("", "/"),
            ("a b", "/a%20b"),
            ("/ü", "/%C3%BC"),
            ("/a%20b?c=d e", "/a%20b?c=d%20e"),
            ("/#x", "/"),
            ("\r\n", "/%0D%0A"),
        ] {
            assert_eq!(path_of(given).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("\"{}\"", "x".repeat(BYTES));
        for (text, said) in [
            ("", "is not JSON"),
            ("[]", "the value: found []; allowed: a table"),
            (r#"{"a":1}"#, "a: found 1; allowed: a table"),
            (r#"{"a":{"ready":{}}}"#, "a.ready: unknown key; allowed: startup, liveness, readiness, preStop"),
            (r#"{"a":{"startup":{}}}"#, "a.startup: found nothing to ask"),
            (r#"{"a":{"startup":{"exec":{}}}}"#, "a.startup.exec: unknown key"),
            (r#"{"a":{"startup":{"tcpSocket":{}}}}"#, "a.startup.tcpSocket.port: missing"),
            (
                r#"{"a":{"startup":{"tcpSocket":{"port":0}}}}"#,
                "a.startup.tcpSocket.port: found 0; allowed: a whole number",
            ),
            (r#"{"a":{"startup":{"tcpSocket":{"port":"http"}}}}"#, "a.startup.tcpSocket.port: found \"http\""),
            (r#"{"a":{"startup":{"tcpSocket":{"port":1},"timeoutSeconds":0}}}"#, "a.startup.timeoutSeconds: found 0"),
            (r#"{"a":{"startup":{"tcpSocket":{"port":1},"grpc":{"port":1}}}}"#, "found two; allowed: one of"),
            (r#"{"a":{"startup":{"httpGet":{"port":1,"scheme":"FTP"}}}}"#, "a.startup.httpGet.scheme: found \"FTP\""),
            (r#"{"a":{"startup":{"httpGet":{"port":1,"headers":[["a b","c"]]}}}}"#, "a.startup.httpGet.headers: found"),
            (
                r#"{"a":{"startup":{"httpGet":{"port":1,"headers":[["a","\r\nb: c"]]}}}}"#,
                "a.startup.httpGet.headers: found",
            ),
            (&long, "found 65538 bytes; allowed: at most 65536"),
        ] {
            let told = text.parse::<Probes>().expect_err(text);
            assert!(told.contains(said), "{told}");
        }
    }
}
