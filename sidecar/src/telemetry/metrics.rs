//! Metrics. Handles are resolved once per route; a call only adds to atomics.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use weft_mesh::{
    errors::{GRPC_CODES, Reason},
    limits,
    policy::{Source, Verdict},
    telemetry,
};

/// Upper bounds of the latency histogram's buckets, in seconds.
const LATENCY_BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// gRPC's codes, 0 to 16, and one more for calls whose caller is gone.
const CODES: usize = GRPC_CODES.len() + 1;
/// The index of a call that succeeded.
const OK: usize = 0;
/// The method's or peer's label if there are too many rows, or the label of a method that no descriptor knows.
pub(crate) const OTHER: &str = "_other";

/// The direction of a call, from the local service's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

/// The labels of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallLabels {
    pub(crate) direction: Direction,
    /// The service that is called.
    pub(crate) service: String,
    /// `shop.users.v1.Users/Create`, or [`OTHER`].
    pub(crate) method: String,
    /// The service that calls.
    pub(crate) peer: String,
}

/// One row: calls of one method by one peer.
#[derive(Debug, Default)]
pub(crate) struct CallMetrics {
    by_code: [AtomicU64; CODES],
    latency: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    latency_sum_us: AtomicU64,
    pub(crate) in_flight: AtomicI64,
    pub(crate) retries: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    pub(crate) hedges: AtomicU64,
    pub(crate) hedges_won: AtomicU64,
    pub(crate) tunnel_bytes_sent: AtomicU64,
    pub(crate) tunnel_bytes_received: AtomicU64,
    /// Made with the first call that the rules do not allow.
    not_allowed: OnceLock<Box<NotAllowed>>,
}

/// Calls that the rules for who may call do not allow, by [`Source`].
#[derive(Debug, Default)]
struct NotAllowed {
    refused: [AtomicU64; Source::ALL.len()],
    /// Those that went on, as the rule is only tried.
    tried: [AtomicU64; Source::ALL.len()],
}

impl NotAllowed {
    /// Each source, whether the rule is only tried, and how often that was, unless never.
    fn all(&self) -> impl Iterator<Item = (Source, bool, u64)> {
        let of = |counts, is_audit| {
            let counts: &[AtomicU64; Source::ALL.len()] = counts;
            Source::ALL.into_iter().zip(counts).map(move |(source, count)| (source, is_audit, count.load(Relaxed)))
        };
        of(&self.refused, false).chain(of(&self.tried, true)).filter(|(.., count)| *count > 0)
    }
}

impl CallMetrics {
    /// Counts a call that the rules do not allow.
    #[cold]
    pub(crate) fn not_allowed(&self, verdict: Verdict) {
        let counts = self.not_allowed.get_or_init(Box::default);
        let counts = if verdict.refuses() { &counts.refused } else { &counts.tried };
        counts[verdict.source as usize].fetch_add(1, Relaxed);
    }

    /// Counts a call that ended.
    pub(crate) fn record(&self, code: u8, took: Duration) {
        self.by_code[usize::from(code).min(CODES - 1)].fetch_add(1, Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < seconds);
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_sum_us.fetch_add(took.as_micros() as u64, Relaxed);
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $help:literal;)*) => {
        /// Everything that is counted besides calls.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $($(#[$doc])* pub(crate) $name: AtomicU64,)* }

        impl Counters {
            fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $help, self.$name.load(Relaxed)),)*].into_iter()
            }
        }
    };
}

counters! {
    connections_accepted = "Connections accepted on the outbound and inbound ports";
    connections_refused = "Connections closed at once because of a limit";
    handshakes_failed = "TLS handshakes of peers that failed";
    connections_malformed = "Connections closed because a peer sent something malformed";
    connections_expired = "Connections ended because the certificate of one side had expired";
    upstream_connections_opened = "Connections made to endpoints";
    upstream_connects_failed = "Connections to endpoints or the local service that could not be made";
    not_retried_unsafe = "Calls not retried because the service may have seen them";
    contracts_reloaded = "How often the contracts of the local service were replaced";
    contracts_refused = "How often changed contracts of the local service could not be used";
    not_retried_body = "Calls not retried because their body was not kept";
    detection_refused = "Redirected connections to an HTTP service refused because they speak another protocol";
    outside_connections = "Redirected connections to the outside of the mesh that were passed through";
    outside_refused = "Redirected connections to the outside of the mesh that were refused";
    unknown_refused = "Redirected connections refused because it was not known whether a service of the mesh is there";
    outside_sent_bytes = "Bytes passed through to the outside of the mesh";
    outside_received_bytes = "Bytes passed through from the outside of the mesh";
    panics = "Tasks that ended in a panic";
    spans_dropped = "Spans dropped because the export queue was full";
}

/// A count for each row of the table of limits.
#[derive(Debug)]
struct LimitsReached([AtomicU64; limits::ALL.len()]);

impl Default for LimitsReached {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// Rows of calls.
#[derive(Debug, Default)]
struct Rows {
    by_labels: HashMap<CallLabels, Arc<CallMetrics>>,
    /// The number of rows of each service that is called.
    of_services: HashMap<String, usize>,
}

/// How often breakers of a service that is called have opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct BreakerOpenings {
    /// That of the service as a whole.
    pub(crate) itself: Arc<AtomicU64>,
    /// Those of its endpoints together.
    pub(crate) endpoints: Arc<AtomicU64>,
}

/// All of a sidecar's metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Locked when a route is made and when metrics are read, never for a call.
    calls: Mutex<Rows>,
    /// By service. Locked when a service is learned and when metrics are read.
    breaker_openings: Mutex<BTreeMap<String, BreakerOpenings>>,
    failures: [AtomicU64; Reason::ALL.len()],
    limits_reached: LimitsReached,
    pub(crate) counters: Counters,
    /// Connections that are open now: those accepted on the outbound and inbound ports, and those made to endpoints.
    pub(crate) open_accepted: AtomicU64,
    pub(crate) open_made: AtomicU64,
    /// Calls that the rules for who may call did not allow.
    pub(crate) not_allowed: AtomicU64,
    /// When this sidecar's SVID expires, in seconds since the epoch; 0 before there is one.
    pub(crate) svid_not_after: AtomicU64,
}

impl Metrics {
    /// The row of these labels; made if it does not exist.
    pub(crate) fn calls(&self, labels: CallLabels) -> Arc<CallMetrics> {
        let Rows { by_labels, of_services } = &mut *self.calls.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(row) = by_labels.get(&labels) {
            return Arc::clone(row);
        }
        let mut is_full = by_labels.len() >= limits::METRIC_SERIES;
        // A callee's contract may have any number of methods.
        if labels.direction == Direction::Outbound && !is_full {
            let of_service = of_services.entry(labels.service.clone()).or_default();
            is_full = *of_service >= limits::METRIC_SERIES_OF_A_SERVICE;
            *of_service += usize::from(!is_full);
        }
        let labels = if is_full { CallLabels { method: OTHER.into(), peer: OTHER.into(), ..labels } } else { labels };
        Arc::clone(by_labels.entry(labels).or_default())
    }

    /// The counts of a service; made if they do not exist.
    pub(crate) fn breaker_openings(&self, service: &str) -> BreakerOpenings {
        let rows = &mut *self.breaker_openings.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(row) = rows.get(service) {
            return row.clone();
        }
        let service = if rows.len() >= limits::METRIC_SERIES { OTHER } else { service };
        rows.entry(service.to_owned()).or_default().clone()
    }

    /// Counts that a limit was reached, by its row in the table.
    pub(crate) fn limit_reached(&self, row: &'static str) {
        // Rare enough for a search.
        let place = limits::ALL.iter().position(|limit| limit.name == row);
        debug_assert!(place.is_some(), "{row} is no limit");
        if let Some(count) = place.and_then(|place| self.limits_reached.0.get(place)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// How often a limit was reached.
    pub(crate) fn times_reached(&self, row: &str) -> u64 {
        let counted = limits::ALL.iter().zip(&self.limits_reached.0).find(|(limit, _)| limit.name == row);
        counted.map_or(0, |(_, count)| count.load(Relaxed))
    }

    /// Counts an error answer that the mesh made.
    pub(crate) fn failure(&self, reason: Reason) {
        self.failures[reason as usize].fetch_add(1, Relaxed);
    }

    /// How many calls the local service has answered with success. Goes through all rows, so don't use it on the call
    /// path.
    pub(crate) fn calls_answered(&self) -> u64 {
        let rows = self.calls.lock().unwrap_or_else(|e| e.into_inner());
        let inbound = rows.by_labels.iter().filter(|(labels, _)| labels.direction == Direction::Inbound);
        inbound.map(|(_, row)| row.by_code[OK].load(Relaxed)).sum()
    }

    /// The most frequent kinds of calls that the rules for who may call did not allow: first one of each caller, then the
    /// second of each, so that no caller takes the place of others.
    pub(crate) fn most_not_allowed(&self, most: usize) -> Vec<(CallLabels, Source, bool, u64)> {
        let mut kinds = Vec::new();
        for (labels, row) in self.rows() {
            for (source, is_audit, count) in row.not_allowed.get().into_iter().flat_map(|counts| counts.all()) {
                kinds.push((labels.clone(), source, is_audit, count));
            }
        }
        kinds.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        let mut of_callers: HashMap<String, usize> = HashMap::new();
        let mut place = |labels: &CallLabels| {
            let of_caller = of_callers.entry(labels.peer.clone()).or_default();
            *of_caller += 1;
            *of_caller
        };
        // The sort is stable: those of the same place stay in order of their counts.
        kinds.sort_by_cached_key(|(labels, ..)| place(labels));
        kinds.truncate(most);
        kinds
    }

    /// The labels of each row, by the row's address.
    pub(crate) fn labels(&self) -> HashMap<*const CallMetrics, CallLabels> {
        self.rows().into_iter().map(|(labels, row)| (Arc::as_ptr(&row), labels)).collect()
    }

    fn rows(&self) -> Vec<(CallLabels, Arc<CallMetrics>)> {
        let rows = self.calls.lock().unwrap_or_else(|e| e.into_inner());
        rows.by_labels.iter().map(|(labels, row)| (labels.clone(), Arc::clone(row))).collect()
    }
}

type Pairs<'a> = Vec<(&'a str, &'a str)>;

/// Gives [`Metrics`] to a `prometheus_client` registry.
#[derive(Debug)]
pub(crate) struct MetricsCollector(pub(crate) Arc<Metrics>);

impl Collector for MetricsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let rows = self.0.rows();
        encode_calls(&rows, &mut encoder)?;
        encode_latency(&rows, &mut encoder)?;
        let mut in_flight =
            encoder.encode_descriptor("weft_calls_in_flight", "Running calls", None, MetricType::Gauge)?;
        for (labels, row) in &rows {
            let gauge = ConstGauge::new(row.in_flight.load(Relaxed));
            gauge.encode(in_flight.encode_family(&pairs(labels))?)?;
        }
        encode_counter(&rows, "weft_retries", "Calls retried", |row| &row.retries, &mut encoder)?;
        let help = "Calls that went on to a fallback, as the service could not take them";
        encode_counter(&rows, "weft_fallbacks", help, |row| &row.fallbacks, &mut encoder)?;
        let help = "Calls sent to another endpoint as well, as their answer took long";
        encode_counter(&rows, "weft_hedges", help, |row| &row.hedges, &mut encoder)?;
        let help = "Hedges that took the place of the first try: they were answered first, or it failed";
        encode_counter(&rows, "weft_hedges_won", help, |row| &row.hedges_won, &mut encoder)?;
        let help = "Bytes that callers have sent through tunnels: TCP and upgrades";
        encode_counter(&rows, "weft_tunnel_sent_bytes", help, |row| &row.tunnel_bytes_sent, &mut encoder)?;
        let help = "Bytes that services have sent through tunnels: TCP and upgrades";
        encode_counter(&rows, "weft_tunnel_received_bytes", help, |row| &row.tunnel_bytes_received, &mut encoder)?;
        encode_not_allowed(&rows, &mut encoder)?;
        encode_breaker_openings(&self.0, &mut encoder)?;
        let mut made = encoder.encode_descriptor(
            "weft_failures",
            "Error answers that the mesh gave in place of a service",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in Reason::ALL.iter().zip(&self.0.failures) {
            let labels = [("reason", reason.as_str())];
            ConstCounter::new(count.load(Relaxed)).encode(made.encode_family(&labels)?)?;
        }
        let help = "How often a limit was reached, by its row in the table of limits";
        let mut reached = encoder.encode_descriptor("weft_limit_reached", help, None, MetricType::Counter)?;
        for limit in limits::ALL {
            let count = self.0.times_reached(limit.name);
            if count > 0 {
                ConstCounter::new(count).encode(reached.encode_family(&[("limit", limit.name)])?)?;
            }
        }
        for (name, help, value) in self.0.counters.all() {
            let name = format!("weft_{name}");
            let mut one = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(one.encode_family(&NO_LABELS)?)?;
        }
        let help = "Log lines that were lost because nobody read them in time";
        let mut lost = encoder.encode_descriptor("weft_log_lines_lost", help, None, MetricType::Counter)?;
        ConstCounter::new(telemetry::log_lines_lost()).encode(lost.encode_family(&NO_LABELS)?)?;
        let help = "Connections that are open: accepted on the outbound and inbound ports, or made to endpoints";
        let mut open = encoder.encode_descriptor("weft_connections_open", help, None, MetricType::Gauge)?;
        for (side, count) in [("accepted", &self.0.open_accepted), ("made", &self.0.open_made)] {
            ConstGauge::new(count.load(Relaxed) as i64).encode(open.encode_family(&[("side", side)])?)?;
        }
        let mut svid = encoder.encode_descriptor(
            "weft_svid_not_after_seconds",
            "When this sidecar's certificate expires, in seconds since the epoch",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.0.svid_not_after.load(Relaxed) as i64).encode(svid.encode_family(&NO_LABELS)?)
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

fn pairs(labels: &CallLabels) -> Pairs<'_> {
    let direction = match labels.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    vec![("direction", direction), ("service", &labels.service), ("method", &labels.method), ("peer", &labels.peer)]
}

fn encode_counter(
    rows: &[(CallLabels, Arc<CallMetrics>)],
    name: &str,
    help: &str,
    count: impl Fn(&CallMetrics) -> &AtomicU64,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, row) in rows {
        ConstCounter::new(count(row).load(Relaxed)).encode(counter.encode_family(&pairs(labels))?)?;
    }
    Ok(())
}

fn encode_calls(
    rows: &[(CallLabels, Arc<CallMetrics>)],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let help = "Calls that ended, by gRPC status; HTTP statuses are mapped to gRPC's";
    let mut calls = encoder.encode_descriptor("weft_calls", help, None, MetricType::Counter)?;
    for (labels, row) in rows {
        for (code, count) in row.by_code.iter().enumerate() {
            let count = count.load(Relaxed);
            if count > 0 {
                let mut pairs = pairs(labels);
                pairs.push(("code", code_name(code as u8)));
                ConstCounter::new(count).encode(calls.encode_family(&pairs)?)?;
            }
        }
    }
    Ok(())
}

fn encode_latency(
    rows: &[(CallLabels, Arc<CallMetrics>)],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let help = "Time from the head of a call to the end of its answer";
    let mut latency = encoder.encode_descriptor("weft_call_duration_seconds", help, None, MetricType::Histogram)?;
    for (labels, row) in rows {
        let counts: Vec<u64> = row.latency.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let bounds = LATENCY_BOUNDS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let sum = row.latency_sum_us.load(Relaxed) as f64 / 1e6;
        latency.encode_family(&pairs(labels))?.encode_histogram::<[(&str, &str); 0]>(
            sum,
            counts.iter().sum(),
            &buckets,
            None,
        )?;
    }
    Ok(())
}

fn encode_not_allowed(
    rows: &[(CallLabels, Arc<CallMetrics>)],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let help = "Calls in that the rules for who may call do not allow; with audit=true they went on all the same";
    let mut made = encoder.encode_descriptor("weft_access_denied", help, None, MetricType::Counter)?;
    for (labels, row) in rows {
        for (source, is_audit, count) in row.not_allowed.get().into_iter().flat_map(|counts| counts.all()) {
            let audit = if is_audit { "true" } else { "false" };
            let labels = [pairs(labels), vec![("rule", source.as_str()), ("audit", audit)]].concat();
            ConstCounter::new(count).encode(made.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_breaker_openings(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let rows = metrics.breaker_openings.lock().unwrap_or_else(|e| e.into_inner()).clone();
    let help = "How often a breaker has opened";
    let mut opened = encoder.encode_descriptor("weft_breaker_openings", help, None, MetricType::Counter)?;
    for (service, of) in &rows {
        for (kind, count) in [("service", &of.itself), ("endpoint", &of.endpoints)] {
            let labels = [("service", service.as_str()), ("kind", kind)];
            ConstCounter::new(count.load(Relaxed)).encode(opened.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// The name of a gRPC code, or of the extra code for a caller that is gone.
pub(crate) fn code_name(code: u8) -> &'static str {
    GRPC_CODES.get(usize::from(code)).copied().unwrap_or("CALLER_GONE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::code::CANCELLED_BY_CALLER;

    #[test]
    fn a_recorded_call_shows_in_the_text_format() {
        let metrics = Arc::new(Metrics::default());
        let labels = CallLabels {
            direction: Direction::Inbound,
            service: "users.shop".into(),
            method: "shop.users.v1.Users/Get".into(),
            peer: "orders.shop".into(),
        };
        let row = metrics.calls(labels);
        row.record(0, Duration::from_millis(2));
        for is_audit in [false, true, true] {
            row.not_allowed(Verdict { is_allowed: false, is_audit, source: Source::MethodOption });
        }
        metrics.failure(Reason::NoEndpoint);
        metrics.breaker_openings("users.shop").endpoints.fetch_add(3, Relaxed);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(MetricsCollector(metrics)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains(r#"weft_calls_total{direction="inbound",service="users.shop",method="shop.users.v1.Users/Get",peer="orders.shop",code="OK"} 1"#), "{text}");
        assert!(
            text.contains(r#"_bucket{le="0.0025",direction="inbound","#) && text.contains(r#"le="+Inf""#),
            "{text}"
        );
        assert!(text.contains(r#"weft_failures_total{reason="no-endpoint"} 1"#), "{text}");
        for (audit, count) in [(false, 1), (true, 2)] {
            let line = format!(r#"peer="orders.shop",rule="method-option",audit="{audit}"}} {count}"#);
            assert!(text.contains(&line), "{text}");
        }
        for (kind, count) in [("service", 0), ("endpoint", 3)] {
            let line = format!(r#"weft_breaker_openings_total{{service="users.shop",kind="{kind}"}} {count}"#);
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn answered_calls_are_those_that_came_in_and_succeeded() {
        let metrics = Metrics::default();
        let row = |direction, method: &str| {
            let method = method.to_owned();
            metrics.calls(CallLabels { direction, service: "users.shop".into(), method, peer: "orders.shop".into() })
        };
        for (direction, code) in
            [(Direction::Outbound, 0), (Direction::Inbound, 14), (Direction::Inbound, CANCELLED_BY_CALLER)]
        {
            row(direction, "Get").record(code, Duration::ZERO);
        }
        assert_eq!(metrics.calls_answered(), 0);
        row(Direction::Inbound, "Get").record(0, Duration::ZERO);
        row(Direction::Inbound, "List").record(0, Duration::ZERO);
        assert_eq!(metrics.calls_answered(), 2);
    }

    #[test]
    fn a_caller_with_many_denials_leaves_room_for_others() {
        let metrics = Metrics::default();
        let denied = |caller: &str, method: usize, times: usize| {
            let labels = CallLabels {
                direction: Direction::Inbound,
                service: "s.d".into(),
                method: method.to_string(),
                peer: caller.into(),
            };
            let verdict = Verdict { is_allowed: false, is_audit: false, source: Source::MethodOption };
            (0..times).for_each(|_| metrics.calls(labels.clone()).not_allowed(verdict));
        };
        (0..30).for_each(|method| denied("evil.d", method, 3 + method));
        denied("cron.d", 7, 1);
        denied("cron.d", 8, 2);
        let told = metrics.most_not_allowed(5);
        let rows: Vec<_> = told.iter().map(|(labels, _, _, count)| (labels.peer.as_str(), *count)).collect();
        assert_eq!(rows, [("evil.d", 32), ("cron.d", 2), ("evil.d", 31), ("cron.d", 1), ("evil.d", 30)]);
    }

    #[test]
    fn the_number_of_rows_is_bounded() {
        let metrics = Metrics::default();
        for n in 0..limits::METRIC_SERIES + 10 {
            metrics.calls(CallLabels {
                direction: Direction::Inbound,
                service: "s.d".into(),
                method: n.to_string(),
                peer: "p.d".into(),
            });
        }
        assert_eq!(metrics.rows().len(), limits::METRIC_SERIES + 1);
    }

    #[test]
    fn a_callee_with_many_methods_leaves_rows_to_others() {
        let metrics = Metrics::default();
        let labels = |service: &str, method: usize| CallLabels {
            direction: Direction::Outbound,
            service: service.into(),
            method: method.to_string(),
            peer: "p.d".into(),
        };
        for method in 0..2 * limits::METRIC_SERIES {
            metrics.calls(labels("greedy.d", method));
        }
        assert_eq!(metrics.rows().len(), limits::METRIC_SERIES_OF_A_SERVICE + 1);
        metrics.calls(labels("s.d", 1));
        assert!(metrics.rows().iter().any(|(row, _)| *row == labels("s.d", 1)));
    }
}
