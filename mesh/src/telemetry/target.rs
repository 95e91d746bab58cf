//! Targets of exported spans.

use std::{fmt, str::FromStr};

use http::Uri;

/// A target that spans are exported to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportTarget {
    /// A collector that takes OTLP over gRPC: `http://HOST:PORT`.
    Otlp(String),
    /// Standard output, one line for each span.
    Console,
}

/// A text that is not an [`ExportTarget`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is not a target for spans: {problem}; allowed are `http://HOST:PORT` (OTLP over gRPC) and `console`"
)]
pub struct BadTarget {
    found: String,
    problem: &'static str,
}

impl FromStr for ExportTarget {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        if text == "console" {
            return Ok(Self::Console);
        }
        let bad = |problem| BadTarget { found: text.to_owned(), problem };
        let uri: Uri = text.parse().map_err(|_| bad("it is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("export over TLS is not supported")),
            _ => return Err(bad("it does not start with `http://`")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(bad("it has no host"));
        }
        if uri.port_u16().is_none_or(|port| port == 0) {
            return Err(bad("it has no valid port; collectors usually listen on 4317"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad("it has a user name"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("it has a path; OTLP over gRPC has none"));
        }
        Ok(Self::Otlp(text.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for ExportTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Otlp(url) => f.write_str(url),
            Self::Console => f.write_str("console"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        let otlp = |url: &str| ExportTarget::Otlp(url.to_owned());
        assert_eq!("console".parse(), Ok(ExportTarget::Console));
        assert_eq!("http://127.0.0.1:4317".parse(), Ok(otlp("http://127.0.0.1:4317")));
        assert_eq!("http://[::1]:4317/".parse(), Ok(otlp("http://[::1]:4317")));
    }

    #[test]
    fn errors_say_what_is_wrong_with_a_target() {
        for (text, problem) in [
            ("", "not a URL"),
            ("Console", "does not start with `http://`"),
            ("localhost:4317", "does not start with `http://`"),
            ("https://host:4317", "TLS is not supported"),
            ("http://host", "no valid port"),
            ("http://host:0", "no valid port"),
            ("http://host:99999", "no valid port"),
            ("http://me@host:1", "a user name"),
            ("http://host:4318/v1/traces", "has a path"),
            ("http://ho st:1", "not a URL"),
        ] {
            let error = text.parse::<ExportTarget>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(error.contains("allowed are `http://HOST:PORT`"), "{error}");
        }
    }
}
