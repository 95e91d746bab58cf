//! The format of a log line: the message, the service, the request and the trace.

use std::fmt::{self, Write};

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::call::{self, Call};

/// Writes each event as one line. The request and the trace are those of the call that is being answered.
pub(crate) struct LogFormat {
    pub(crate) service: String,
    pub(crate) is_json: bool,
}

impl<S, N> FormatEvent<S, N> for LogFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = if self.is_json { self.json(event, fields)? } else { self.text(event, fields)? };
        writeln!(writer, "{line}")
    }
}

impl LogFormat {
    fn json(&self, event: &Event<'_>, fields: Fields) -> Result<String, fmt::Error> {
        let mut line = Map::new();
        let mut put = |key: &str, value: String| line.insert(key.to_owned(), Value::String(value));
        put("timestamp", now()?);
        put("level", event.metadata().level().to_string());
        put("service", self.service.clone());
        put("target", event.metadata().target().to_owned());
        put("message", fields.message);
        if let Some(call) = call::current() {
            put("request_id", call.request_id().to_owned());
            call.trace_id().map(|id| put("trace_id", id));
        }
        for (key, value) in fields.others {
            line.entry(key).or_insert(value);
        }
        Ok(Value::Object(line).to_string())
    }

    fn text(&self, event: &Event<'_>, fields: Fields) -> Result<String, fmt::Error> {
        let mut line = format!("{} {:>5} {}", now()?, event.metadata().level(), fields.message);
        for (key, value) in &fields.others {
            // A caller's text in a field must not look like another line.
            match value {
                Value::String(text) if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') => {
                    write!(line, " {key}={text:?}")?;
                }
                Value::String(text) => write!(line, " {key}={text}")?,
                other => write!(line, " {key}={other}")?,
            }
        }
        if let Some(call) = call::current() {
            write!(line, " request={}", call.request_id())?;
            if let Some(id) = Call::trace_id(&call) {
                write!(line, " trace={id}")?;
            }
        }
        Ok(line)
    }
}

fn now() -> Result<String, fmt::Error> {
    let mut text = String::new();
    SystemTime.format_time(&mut Writer::new(&mut text))?;
    Ok(text)
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            (name, value) => self.others.push((name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, ((value * 1e3).round() / 1e3).into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use http::HeaderMap;
    use tokio::time::Instant;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(is_json: bool) -> String {
        let buffer = Buffer::default();
        let sink = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .event_format(LogFormat { service: "users".to_owned(), is_json })
            .with_writer(move || sink.clone())
            .finish();
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", "r-1".parse().unwrap());
        headers.insert("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
        let call = Call::from_headers(&headers, Instant::now());
        tracing::subscriber::with_default(subscriber, || {
            call::within(&call, || tracing::info!(name = "Ada\nERROR forged", count = 2, "user {}", "created"));
        });
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_of_json_names_its_request_and_trace() {
        let line: Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(line["service"], "users");
        assert_eq!(line["message"], "user created");
        assert_eq!(line["request_id"], "r-1");
        assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((&line["name"], &line["count"]), (&"Ada\nERROR forged".into(), &2.into()));
    }

    #[test]
    fn a_field_cannot_forge_a_line_of_text() {
        let text = logged(false);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.contains(r#" INFO user created name="Ada\nERROR forged" count=2 request=r-1 trace=4bf9"#),
            "{text}"
        );
    }
}
