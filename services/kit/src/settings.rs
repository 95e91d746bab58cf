//! The settings of a service, from its environment.

use std::net::SocketAddr;

use weft_mesh::names::{DEFAULT_NAMESPACE, port};

/// The settings of a service, from its environment. `weft up` and the sidecar injector set these variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `WEFT_SERVICE`: the service's name in the mesh, if it is not the one in its code.
    pub service: Option<String>,
    /// `WEFT_NAMESPACE`
    pub namespace: String,
    /// `WEFT_LISTEN`, or `PORT` on loopback: only the local sidecar calls it.
    pub listen: SocketAddr,
    /// `WEFT_OUTBOUND`: the local sidecar's URL for the service's own calls.
    pub outbound: http::Uri,
    /// `WEFT_OTLP`: where spans go (OTLP/gRPC), comma separated. Without it no spans are recorded; the trace context of
    /// a call is still passed on.
    pub otlp: Vec<String>,
    /// `WEFT_LOG_FORMAT`: `text` or `json`.
    pub is_log_json: bool,
}

/// What is wrong with a variable.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Neither of the two variables with the address is set.
    #[error(
        "WEFT_LISTEN is not set: give the address to listen on, such as 127.0.0.1:9000 (or a port on loopback as PORT)"
    )]
    NoListen,
    /// The value of a variable is not valid.
    #[error("{variable}: `{found}` is not {allowed}")]
    Value {
        /// Its name.
        variable: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

impl Settings {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// A variable has a value that is not valid, or the address to listen on is missing.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Settings for a service that listens on `listen` and calls through `outbound`. Everything else has its default.
    pub fn local(listen: SocketAddr, outbound: http::Uri) -> Self {
        Self {
            service: None,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            listen,
            outbound,
            otlp: Vec::new(),
            is_log_json: false,
        }
    }

    fn read(get: impl Fn(&'static str) -> Option<String>) -> Result<Self, SettingsError> {
        let get = |name| get(name).filter(|value| !value.trim().is_empty());
        Ok(Self {
            service: get("WEFT_SERVICE"),
            namespace: get("WEFT_NAMESPACE").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            listen: listen(get("WEFT_LISTEN"), get("PORT"))?,
            outbound: outbound(get("WEFT_OUTBOUND"))?,
            otlp: get("WEFT_OTLP").map(|urls| list(&urls)).unwrap_or_default(),
            is_log_json: match get("WEFT_LOG_FORMAT").as_deref() {
                None | Some("text") => false,
                Some("json") => true,
                Some(other) => return Err(value("WEFT_LOG_FORMAT", other, "`text` or `json`")),
            },
        })
    }
}

fn listen(address: Option<String>, port: Option<String>) -> Result<SocketAddr, SettingsError> {
    match (address, port) {
        (Some(address), _) => address
            .parse()
            .map_err(|_| value("WEFT_LISTEN", &address, "an address with a port, such as 127.0.0.1:9000")),
        (None, Some(port)) => match port.parse::<u16>() {
            Ok(number) => Ok(SocketAddr::from(([127, 0, 0, 1], number))),
            Err(_) => Err(value("PORT", &port, "a port from 0 to 65535")),
        },
        (None, None) => Err(SettingsError::NoListen),
    }
}

fn outbound(url: Option<String>) -> Result<http::Uri, SettingsError> {
    let url = url.unwrap_or_else(|| format!("http://127.0.0.1:{}", port::OUTBOUND));
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.authority().is_some() => Ok(uri),
        _ => Err(value("WEFT_OUTBOUND", &url, "a URL such as http://127.0.0.1:15001")),
    }
}

fn list(urls: &str) -> Vec<String> {
    urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

fn value(variable: &'static str, found: &str, allowed: &'static str) -> SettingsError {
    SettingsError::Value { variable, found: found.to_owned(), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn only_a_port_is_needed() {
        let settings = read(&[("PORT", "9000"), ("WEFT_OTLP", "")]).unwrap();
        assert_eq!(
            settings,
            Settings::local("127.0.0.1:9000".parse().unwrap(), "http://127.0.0.1:15001".parse().unwrap())
        );
    }

    #[test]
    fn the_address_wins_over_the_port_and_lists_are_split() {
        let settings = read(&[
            ("PORT", "1"),
            ("WEFT_LISTEN", "[::1]:9000"),
            ("WEFT_OTLP", "http://127.0.0.1:4317, http://127.0.0.1:15080"),
            ("WEFT_LOG_FORMAT", "json"),
        ])
        .unwrap();
        assert_eq!(settings.listen, "[::1]:9000".parse().unwrap());
        assert_eq!(settings.otlp, ["http://127.0.0.1:4317", "http://127.0.0.1:15080"]);
        assert!(settings.is_log_json);
    }

    #[test]
    fn a_wrong_value_is_reported_with_what_is_allowed() {
        assert!(read(&[]).unwrap_err().starts_with("WEFT_LISTEN is not set"));
        for (set, said) in [
            ([("PORT", "9000000")], "PORT: `9000000` is not a port from 0 to 65535"),
            ([("WEFT_LISTEN", "users")], "WEFT_LISTEN: `users` is not an address with a port, such as 127.0.0.1:9000"),
        ] {
            assert_eq!(read(&set).unwrap_err(), said);
        }
        let with = |name, value| read(&[("PORT", "1"), (name, value)]).unwrap_err();
        assert!(with("WEFT_OUTBOUND", "127.0.0.1:15001").starts_with("WEFT_OUTBOUND: `127.0.0.1:15001`"));
        assert!(with("WEFT_LOG_FORMAT", "xml").contains("`text` or `json`"));
    }
}
