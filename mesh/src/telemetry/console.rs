//! Spans on standard output, one line each.

use std::{
    fmt::{self, Write as _},
    io,
    sync::Arc,
};

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;

use super::outlet::Outlet;

/// Standard output. Writing to it never waits for its reader.
#[derive(Debug)]
pub(super) struct Console(Arc<Outlet>);

impl Console {
    /// # Errors
    /// The system has no thread left.
    pub(super) fn new() -> io::Result<Self> {
        // The exporter logs lost spans.
        Ok(Self(Arc::new(Outlet::start("spans", io::stdout(), |_| {})?)))
    }

    /// Prints spans.
    ///
    /// # Errors
    /// Too many spans wait already.
    pub(super) fn print(&self, spans: &[SpanData]) -> Result<(), String> {
        let mut lines = String::new();
        for span in spans {
            // Writing to a string does not fail.
            let _ = writeln!(lines, "{}", Line(span));
        }
        if self.0.push(lines.as_bytes()) { Ok(()) } else { Err("nobody reads standard output".to_owned()) }
    }

    /// Waits until all is printed, for a limited time.
    pub(super) async fn flush(&self) {
        let outlet = Arc::clone(&self.0);
        // It fails only if the runtime is shutting down, and with it the waiting task.
        let _ = tokio::task::spawn_blocking(move || outlet.flush()).await;
    }
}

struct Line<'a>(&'a SpanData);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = self.0;
        let kind = match span.span_kind {
            SpanKind::Client => "client",
            SpanKind::Server => "server",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Internal => "internal",
        };
        let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
        write!(f, "span {} {kind} {:.3}ms", span.name, took.as_secs_f64() * 1e3)?;
        write!(f, " trace={} span={}", span.span_context.trace_id(), span.span_context.span_id())?;
        write!(f, " parent={}", span.parent_span_id)?;
        match &span.status {
            Status::Unset => {}
            Status::Ok => write!(f, " status=ok")?,
            Status::Error { description } => write!(f, " status=error {description:?}")?,
        }
        for attribute in &span.attributes {
            write!(f, " {}={:?}", attribute.key, attribute.value.as_str())?;
        }
        for event in &span.events.events {
            write!(f, " event={:?}", event.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_the_whole_span() {
        let line = Line(&super::super::tests::span(7)).to_string();
        assert!(line.starts_with("span t.S/Call client "), "{line}");
        assert!(line.contains(" trace=00000000000000000000000000000007 span=0000000000000007 parent="), "{line}");
        assert!(line.ends_with(r#" status=error "lost" rpc.system.name="grpc""#), "{line}");
        assert!(!line.contains('\n'));
    }
}
