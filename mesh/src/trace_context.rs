//! The trace that a call belongs to, as in its headers: [W3C Trace Context], with [B3] as a fallback.
//!
//! Everything here works on borrowed bytes and fixed arrays: a call's trace context needs no allocation.
//!
//! [W3C Trace Context]: https://www.w3.org/TR/trace-context/
//! [B3]: https://github.com/openzipkin/b3-propagation

use http::{HeaderMap, HeaderName};

/// `traceparent`, the header of W3C Trace Context.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`, the vendors' companion of [`TRACEPARENT`], passed on as it is.
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of a `traceparent` of version 00, in bytes.
pub const TRACEPARENT_BYTES: usize = 55;

/// A position in a trace: the trace, its current span, and whether the trace is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// Never all zero.
    pub span_id: [u8; 8],
    /// Whether the spans of this trace are recorded.
    pub is_sampled: bool,
}

impl TraceContext {
    /// Starts a trace. `trace` and `span` are random; a zero, which is not a valid id, becomes one.
    pub fn new_root(trace: u128, span: u64, is_sampled: bool) -> Self {
        Self { trace_id: trace.max(1).to_be_bytes(), span_id: span.max(1).to_be_bytes(), is_sampled }
    }

    /// The same trace with another current span.
    #[must_use]
    pub fn child(&self, span_id: [u8; 8]) -> Self {
        Self { span_id, ..*self }
    }

    /// The context in a request's headers: `traceparent`, or B3 if that is missing or invalid.
    ///
    /// A header that occurs twice counts as invalid, as it is ambiguous.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        Self::read(|name| {
            let mut values = headers.get_all(name).iter();
            let first = values.next()?;
            values.next().is_none().then(|| first.as_bytes())
        })
    }

    /// The same for any kind of header list: `single` returns the value of a field that occurs exactly once.
    pub fn read<'a>(single: impl Fn(&'static str) -> Option<&'a [u8]>) -> Option<Self> {
        if let Some(context) = single("traceparent").and_then(Self::parse_traceparent) {
            return Some(context);
        }
        if let Some(context) = single("b3").and_then(Self::parse_b3_single) {
            return Some(context);
        }
        let trace = single("x-b3-traceid")?;
        let is_debug = single("x-b3-flags") == Some(b"1");
        let sampled = if is_debug { Some(&b"d"[..]) } else { single("x-b3-sampled") };
        Self::parse_b3_multi(trace, single("x-b3-spanid")?, sampled)
    }

    /// Reads a `traceparent` (W3C Trace Context, section 3.2).
    ///
    /// Version 00 must have exactly its length. Of a later version only the fields of version 00 are read (section
    /// 4.3). Version ff is forbidden.
    pub fn parse_traceparent(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(TRACEPARENT_BYTES)?;
        let [version] = decode_hex(&known[0..2])?;
        let is_length_right = match version {
            0x00 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !is_length_right || known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
            return None;
        }
        let [flags] = decode_hex(&known[53..55])?;
        Self::checked(decode_hex(&known[3..35])?, decode_hex(&known[36..52])?, flags & 1 == 1)
    }

    /// Reads the single header `b3: TRACE-SPAN[-SAMPLED[-PARENT]]`.
    ///
    /// `b3: 0` forbids sampling and names no trace, so it is not a context: `None`.
    pub fn parse_b3_single(value: &[u8]) -> Option<Self> {
        let mut parts = value.split(|byte| *byte == b'-');
        let (trace, span, sampled) = (parts.next()?, parts.next()?, parts.next());
        if let Some(parent) = parts.next() {
            decode_hex::<8>(parent)?;
        }
        if parts.next().is_some() {
            return None;
        }
        Self::parse_b3_multi(trace, span, sampled)
    }

    /// Reads the values of `x-b3-traceid`, `x-b3-spanid` and `x-b3-sampled`.
    ///
    /// A trace id of 64 bits is extended with zeros. Without a sampling decision the trace is recorded, as its sender
    /// has started it.
    pub fn parse_b3_multi(trace: &[u8], span: &[u8], sampled: Option<&[u8]>) -> Option<Self> {
        let trace_id = match trace.len() {
            16 => {
                let mut wide = [0; 16];
                wide[8..].copy_from_slice(&decode_hex::<8>(trace)?);
                wide
            }
            _ => decode_hex(trace)?,
        };
        let is_sampled = match sampled {
            None | Some(b"1" | b"d" | b"true") => true,
            Some(b"0" | b"false") => false,
            Some(_) => return None,
        };
        Self::checked(trace_id, decode_hex(span)?, is_sampled)
    }

    /// Writes the context as a `traceparent` of version 00: ASCII.
    pub fn to_traceparent(&self) -> [u8; TRACEPARENT_BYTES] {
        let mut out = *b"00-................................-................-00";
        encode_hex(&self.trace_id, &mut out[3..35]);
        encode_hex(&self.span_id, &mut out[36..52]);
        out[54] += u8::from(self.is_sampled);
        out
    }

    /// The trace id in hexadecimal: ASCII.
    pub fn trace_id_hex(&self) -> [u8; 32] {
        let mut out = [0; 32];
        encode_hex(&self.trace_id, &mut out);
        out
    }

    fn checked(trace_id: [u8; 16], span_id: [u8; 8], is_sampled: bool) -> Option<Self> {
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, is_sampled })
    }
}

/// Whether a trace is in the share that `threshold` (see [`threshold_of`]) selects.
///
/// The rule is that of OpenTelemetry's `TraceIdRatioBased`, so that all parts decide the same for a trace.
pub fn ratio_sampled(trace_id: &[u8; 16], threshold: u64) -> bool {
    let [.., a, b, c, d, e, f, g, h] = *trace_id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < threshold
}

/// The threshold of a ratio from 0 (nothing) to 1 (everything). Values outside count as the nearer end, and NaN as 0.
pub fn threshold_of(ratio: f64) -> u64 {
    const EVERYTHING: u64 = 1 << 63;
    // `clamp` keeps a NaN, and `as` makes it 0.
    (ratio.clamp(0.0, 1.0) * EVERYTHING as f64) as u64
}

const NOT_HEX: u8 = 0xff;

/// The value of each ASCII digit `0-9a-f`. W3C Trace Context forbids upper case.
const HEX_VALUES: [u8; 256] = {
    let mut table = [NOT_HEX; 256];
    let mut value = 0;
    while value < 16 {
        table[HEX_DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    table
};

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

fn decode_hex<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    if hex.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    let mut seen = 0;
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        let (high, low) = (HEX_VALUES[usize::from(pair[0])], HEX_VALUES[usize::from(pair[1])]);
        // The value of a digit has four bits, and NOT_HEX has more: one check at the end is enough.
        seen |= high | low;
        *byte = high << 4 | low;
    }
    (seen < 16).then_some(out)
}

fn encode_hex(bytes: &[u8], out: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = HEX_DIGITS[usize::from(byte >> 4)];
        pair[1] = HEX_DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(value: &str) -> Option<TraceContext> {
        TraceContext::parse_traceparent(value.as_bytes())
    }

    #[test]
    fn the_standards_traceparent_is_read_and_written() {
        let context = parse(EXAMPLE).unwrap();
        assert_eq!(u128::from_be_bytes(context.trace_id), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(u64::from_be_bytes(context.span_id), 0x00f0_67aa_0ba9_02b7);
        assert!(context.is_sampled);
        assert_eq!(&context.to_traceparent(), EXAMPLE.as_bytes());
        assert_eq!(&context.trace_id_hex()[..], &EXAMPLE.as_bytes()[3..35]);
    }

    #[test]
    fn only_the_sampled_flag_is_read() {
        assert!(!parse(&EXAMPLE.replace("-01", "-00")).unwrap().is_sampled);
        assert!(!parse(&EXAMPLE.replace("-01", "-fe")).unwrap().is_sampled);
        assert!(parse(&EXAMPLE.replace("-01", "-ff")).unwrap().is_sampled);
    }

    #[test]
    fn malformed_traceparents_are_refused() {
        let zero_trace = format!("00-{:032}-00f067aa0ba902b7-01", 0);
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{:016}-01", 0);
        let cases = [
            "",
            &EXAMPLE[..54],
            &format!("{EXAMPLE}-"),
            &format!("{EXAMPLE}-what"),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace("00-4", "ff-4"),
            &EXAMPLE.replace("00-4", "0x-4"),
            &EXAMPLE.replace('-', "_"),
            &EXAMPLE.replace("-01", "-0g"),
            &zero_trace,
            &zero_span,
        ];
        for case in cases {
            assert_eq!(parse(case), None, "{case}");
        }
    }

    #[test]
    fn the_known_fields_of_later_versions_are_read() {
        let later = EXAMPLE.replace("00-4", "cc-4");
        assert_eq!(parse(&later), parse(EXAMPLE));
        assert_eq!(parse(&format!("{later}-more-to-come")), parse(EXAMPLE));
        assert_eq!(parse(&format!("{later}.what")), None);
    }

    #[test]
    fn b3_is_read_in_both_forms() {
        let wide = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90";
        let context = TraceContext::parse_b3_single(wide.as_bytes()).unwrap();
        assert_eq!(&context.to_traceparent(), b"00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01");
        let narrow = TraceContext::parse_b3_single(b"64fe8b2a57d3eff7-e457b5a2e4d86bd1-0").unwrap();
        assert_eq!(&narrow.to_traceparent(), b"00-000000000000000064fe8b2a57d3eff7-e457b5a2e4d86bd1-00");
        for refused in ["0", "", "-", "64fe8b2a57d3eff7", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-2", &format!("{wide}-1")] {
            assert_eq!(TraceContext::parse_b3_single(refused.as_bytes()), None, "{refused}");
        }

        let mut headers = HeaderMap::new();
        headers.insert("x-b3-traceid", "64fe8b2a57d3eff7".parse().unwrap());
        headers.insert("x-b3-spanid", "e457b5a2e4d86bd1".parse().unwrap());
        assert!(TraceContext::from_headers(&headers).unwrap().is_sampled);
        headers.insert("x-b3-sampled", "0".parse().unwrap());
        assert_eq!(TraceContext::from_headers(&headers), Some(narrow));
        headers.insert("x-b3-flags", "1".parse().unwrap());
        assert!(TraceContext::from_headers(&headers).unwrap().is_sampled);
    }

    #[test]
    fn traceparent_wins_over_b3_unless_it_is_invalid_or_ambiguous() {
        let mut headers = HeaderMap::new();
        headers.insert("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-1".parse().unwrap());
        let b3 = TraceContext::from_headers(&headers).unwrap();
        headers.insert("traceparent", EXAMPLE.parse().unwrap());
        assert_eq!(TraceContext::from_headers(&headers), parse(EXAMPLE));
        headers.append("traceparent", EXAMPLE.parse().unwrap());
        assert_eq!(TraceContext::from_headers(&headers), Some(b3));
        headers.insert("traceparent", "nonsense".parse().unwrap());
        assert_eq!(TraceContext::from_headers(&headers), Some(b3));
    }

    #[test]
    fn a_root_is_always_valid_and_a_child_stays_in_its_trace() {
        let root = TraceContext::new_root(0, 0, true);
        assert_eq!(TraceContext::parse_traceparent(&root.to_traceparent()), Some(root));
        let child = root.child([7; 8]);
        assert_eq!((child.trace_id, child.span_id, child.is_sampled), (root.trace_id, [7; 8], true));
    }

    #[test]
    fn ratios_out_of_range_mean_all_or_nothing() {
        for all in [1.0, 2.0, f64::INFINITY] {
            assert!(ratio_sampled(&[0xff; 16], threshold_of(all)), "{all}");
        }
        for none in [0.0, -1.0, f64::NEG_INFINITY, f64::NAN] {
            assert!(!ratio_sampled(&[0; 16], threshold_of(none)), "{none}");
        }
    }

    proptest! {
        #[test]
        fn written_contexts_are_read_back(trace in 1u128.., span in 1u64.., is_sampled: bool) {
            let context = TraceContext::new_root(trace, span, is_sampled);
            prop_assert_eq!(TraceContext::parse_traceparent(&context.to_traceparent()), Some(context));
            let b3 = format!("{trace:032x}-{span:016x}-{}", u8::from(is_sampled));
            prop_assert_eq!(TraceContext::parse_b3_single(b3.as_bytes()), Some(context));
        }

        #[test]
        fn any_bytes_are_handled(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceContext::parse_traceparent(&value);
            let _ = TraceContext::parse_b3_single(&value);
        }

        #[test]
        fn one_wrong_byte_never_yields_another_trace(at in 0..55usize, byte: u8) {
            let mut value = *EXAMPLE.as_bytes().first_chunk::<55>().unwrap();
            value[at] = byte;
            if let Some(context) = TraceContext::parse_traceparent(&value) {
                let written = context.to_traceparent();
                // The version becomes 00 and unknown flags are cleared; the ids stay.
                prop_assert_eq!(&written[3..53], &value[3..53]);
            }
        }

        #[test]
        fn sampling_agrees_with_opentelemetry(trace in 1u128.., ratio in 0.0..=1.0f64) {
            use opentelemetry::trace::{SpanKind, TraceId};
            use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample};
            let theirs = Sampler::TraceIdRatioBased(ratio)
                .should_sample(None, TraceId::from(trace), "", &SpanKind::Client, &[], &[])
                .decision;
            let ours = ratio_sampled(&u128::to_be_bytes(trace), threshold_of(ratio));
            prop_assert_eq!(ours, theirs == SamplingDecision::RecordAndSample);
        }
    }
}
