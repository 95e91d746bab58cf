//! The table of intended differences between our connection and the h2 crate's.

use weft_wire::hpack::Malformed;

use super::differences::{Block, Difference};
use super::frames::*;
use super::script::{CLIENT_STREAMS, HEADER_LIST_BYTES, Role, Script};
use super::seen::Seen;

/// An intended difference.
pub struct ByDesign {
    pub what: &'static str,
    pub why: &'static str,
    pub is: fn(&Script, &Difference) -> bool,
}

/// The row of the table that explains a difference.
pub fn by_design(script: &Script, difference: &Difference) -> Option<&'static ByDesign> {
    BY_DESIGN.iter().find(|row| (row.is)(script, difference))
}

const OK: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

pub const BY_DESIGN: &[ByDesign] = &[
    ByDesign {
        what: "a wrong length is FRAME_SIZE_ERROR",
        why: "RFC 9113, section 4.2; h2 calls it PROTOCOL_ERROR",
        is: |_, this| this.both(FRAME_SIZE_ERROR, PROTOCOL_ERROR),
    },
    ByDesign {
        what: "a field block that cannot be decoded is COMPRESSION_ERROR",
        why: "RFC 9113, section 4.3; h2 calls it PROTOCOL_ERROR",
        is: |_, this| this.both(COMPRESSION_ERROR, PROTOCOL_ERROR),
    },
    ByDesign {
        what: "an initial window over 2^31-1 is FLOW_CONTROL_ERROR",
        why: "RFC 9113, section 6.5.2; h2 calls it PROTOCOL_ERROR",
        is: |_, this| this.frame.kind == SETTINGS && this.both(FLOW_CONTROL_ERROR, PROTOCOL_ERROR),
    },
    ByDesign {
        what: "SETTINGS that make a window overflow are FLOW_CONTROL_ERROR even if the stream has sent everything",
        why: "RFC 9113, section 6.9.2 makes no exception; h2 does",
        is: |_, this| {
            this.frame.kind == SETTINGS && this.ours.goaway == Some(FLOW_CONTROL_ERROR) && this.theirs.goaway.is_none()
        },
    },
    ByDesign {
        what: "extended CONNECT cannot be disabled again",
        why: "RFC 8441, section 3; h2 accepts it",
        is: |_, this| {
            this.frame.kind == SETTINGS
                && this.ours.goaway == Some(PROTOCOL_ERROR)
                && this.frame.payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 0])
        },
    },
    ByDesign {
        what: "the block of a stream that depends on itself is decoded",
        why: "RFC 9113, section 4.3: it changes the dynamic table; h2 does not decode it",
        is: |_, this| this.is_headers() && this.is_self_dependent,
    },
    ByDesign {
        what: "frames on streams that we have reset are ignored",
        why: "RFC 9113, section 5.1: they may have been on their way; h2 resets streams again",
        is: |_, this| {
            let has_given_up = this.is_going || this.before.resets.contains_key(&this.frame.stream);
            has_given_up && this.ours == this.before && this.theirs.goaway != Some(OK)
        },
    },
    ByDesign {
        what: "faults in the first frames of a block count",
        why: "RFC 9113, section 8.1.1; h2 forgets them when a frame ends inside a field",
        is: |_, this| {
            let is_answered = this.ours.heads_sent != this.before.heads_sent && this.ours.calls == this.before.calls;
            let is_refused = this.our_reset() == Some(PROTOCOL_ERROR) || is_answered;
            this.frame.kind == CONTINUATION && is_refused && this.theirs.goaway.is_none()
        },
    },
    ByDesign {
        what: "CONNECT needs an authority",
        why: "RFC 9113, section 8.5; h2 accepts it without",
        is: |_, this| {
            this.value(":method") == Some(b"CONNECT")
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && this.value(":authority").is_none()
        },
    },
    ByDesign {
        what: "a response with status 204 or 304 has no content",
        why: "RFC 9110, section 6.4.1; h2 accepts some",
        is: |script, this| {
            script.role == Role::Client
                && this.frame.kind == DATA
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && this.before.call_of(&this.frame).has_no_content()
        },
    },
    ByDesign {
        what: "a response without content may have a content-length",
        why: "RFC 9110, section 8.6; h2 makes it an error if trailers follow",
        is: |script, this| {
            script.role == Role::Client
                && this.ours.call_of(&this.frame).is_ended
                && this.theirs.call_of(&this.frame).reset == Some(PROTOCOL_ERROR)
                && this.before.call_of(&this.frame).has_no_content()
        },
    },
    ByDesign {
        what: "the content-length of an interim response does not count for the final one",
        why: "RFC 9110, section 8.6; h2 applies it to the final response",
        is: |script, this| {
            let call = this.before.call_of(&this.frame);
            let is_promise = |(name, _): &(Vec<u8>, Vec<u8>)| name == b"content-length";
            script.role == Role::Client
                && this.theirs.call_of(&this.frame).reset == Some(PROTOCOL_ERROR)
                && call.heads.iter().any(|list| list[0].1.starts_with(b"1") && list.iter().any(is_promise))
        },
    },
    ByDesign {
        what: "the sender chooses which stream uses the connection's window first",
        why: "RFC 9113, section 5.3; h2 chooses differently",
        is: |_, this| {
            let (ends_sent, data_sent) = (this.theirs.ends_sent.clone(), this.theirs.data_sent);
            // Then the rest of the streams' windows differs, too.
            let has_choice = this.ours.heads_sent.len() > 1;
            has_choice && Seen { ends_sent, data_sent, ..this.ours.clone() } == this.theirs
        },
    },
    ByDesign {
        what: "trailers have no pseudo-headers",
        why: "RFC 9113, section 8.1; h2 accepts them",
        is: |_, this| {
            let is_pseudo = |block: &Block| block.list.iter().any(|(name, _)| name.starts_with(b":"));
            this.our_reset() == Some(PROTOCOL_ERROR)
                && !this.before.call_of(&this.frame).heads.is_empty()
                && this.block.as_ref().is_some_and(is_pseudo)
        },
    },
    ByDesign {
        what: "the header list of a refused stream is not checked",
        why: "the request may be retried in any case; h2 checks the list first",
        is: |_, this| this.our_reset() == Some(REFUSED_STREAM) && this.frame.stream % 2 == 1,
    },
    ByDesign {
        what: "a field block on a stream that cannot exist is a connection error, even if its list is malformed",
        why: "RFC 9113, section 5.1.1; h2 checks the list first",
        is: |script, this| {
            let mut known = this.before.calls.keys().chain(this.before.resets.keys());
            let is_below = known.any(|stream| *stream >= this.frame.stream);
            let is_possible = match script.role {
                Role::Server => !is_below && this.frame.stream % 2 == 1,
                Role::Client => CLIENT_STREAMS.contains(&this.frame.stream),
            };
            this.is_headers() && this.ours.goaway == Some(PROTOCOL_ERROR) && !is_possible
        },
    },
    ByDesign {
        what: "a block is decoded to its end",
        why: "RFC 9113, section 4.3; h2 stops if its first frames are malformed",
        is: |_, this| {
            this.frame.kind == CONTINUATION
                && this.ours.goaway == Some(COMPRESSION_ERROR)
                && this.theirs.goaway.is_none()
        },
    },
    ByDesign {
        what: "streams that GOAWAY says were not processed are reported by a notice",
        why: "see Notice::Unseen; h2 reports errors",
        is: |script, this| {
            script.role == Role::Client
                && this.frame.kind == GOAWAY
                && this.ours == this.before
                && this.theirs.goaway.is_none()
        },
    },
    ByDesign {
        what: "content-length consists of digits, and several of them must agree",
        why: "RFC 9110, section 8.6; h2 accepts an empty one, and does not check those of trailers",
        is: |_, this| {
            let is_length = |(name, _): &&(Vec<u8>, Vec<u8>)| name == b"content-length";
            let is_odd = |value: &[u8]| value.is_empty() || !value.iter().all(u8::is_ascii_digit);
            let is_wrong = |block: &Block| {
                let mut lengths = block.list.iter().filter(is_length);
                lengths.clone().any(|(_, value)| is_odd(value)) || lengths.next() != lengths.next_back()
            };
            this.our_reset() == Some(PROTOCOL_ERROR) && this.block.as_ref().is_some_and(is_wrong)
        },
    },
    ByDesign {
        what: "the value of te: trailers is case-insensitive",
        why: "RFC 9110, section 10.1.4; h2 requires lower case",
        is: |_, this| {
            let value = this.value("te").map(<[u8]>::to_ascii_lowercase);
            this.their_reset() == Some(PROTOCOL_ERROR) && value.as_deref() == Some(b"trailers")
        },
    },
    ByDesign {
        what: "an acknowledgement without unacknowledged SETTINGS is ignored",
        why: "RFC 9113 has no rule for it; h2 closes the connection",
        is: |_, this| this.frame.kind == SETTINGS && this.frame.has(ACK) && this.theirs.goaway == Some(PROTOCOL_ERROR),
    },
    ByDesign {
        what: "a malformed list is a stream error",
        why: "RFC 9113, section 8.1.1; h2 closes the connection if its types refuse a character",
        is: |_, this| {
            let is_fault_of_stream = this.our_reset() == Some(PROTOCOL_ERROR) || this.ours == this.before;
            this.is_decoded() && is_fault_of_stream && this.theirs.goaway == Some(PROTOCOL_ERROR)
        },
    },
    ByDesign {
        what: "a value has no DEL, and a pseudo-header's value has no whitespace at its ends",
        why: "RFC 9113, section 8.2.1; h2 accepts both",
        is: |_, this| {
            matches!(this.malformed(), Some(Malformed::Value | Malformed::Space))
                && this.our_reset() == Some(PROTOCOL_ERROR)
        },
    },
    ByDesign {
        what: "paths, authorities and schemes are not parsed as URIs",
        why: "a relay passes them on; h2 refuses what its URI type does not accept",
        is: |_, this| {
            let is_uri = |name| this.value(name).is_none_or(|value| http::Uri::try_from(value).is_ok());
            let is_refused = this.their_reset() == Some(PROTOCOL_ERROR);
            let is_taken = this.ours.call_of(&this.frame).heads.len() > this.before.call_of(&this.frame).heads.len();
            is_refused && is_taken && ![":path", ":authority", ":scheme"].into_iter().all(is_uri)
        },
    },
    ByDesign {
        what: "a path is required and starts with a slash or is the asterisk of OPTIONS, and a scheme is not empty",
        why: "RFC 9113, section 8.3.1; h2 accepts others",
        is: |script, this| {
            let is_path = this.value(":path").is_some_and(|path| path.starts_with(b"/"));
            script.role == Role::Server
                && this.before.call_of(&this.frame).heads.is_empty()
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && this.is_decoded()
                && !(is_path && this.value(":scheme").is_some_and(|scheme| !scheme.is_empty()))
        },
    },
    ByDesign {
        what: "a list of exactly the limit's size is allowed",
        why: "RFC 9113, section 6.5.2: the limit is a maximum; h2 refuses it",
        is: |_, this| {
            let size = |block: &Block| block.list.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
            this.our_reset().is_none() && this.block.as_ref().map(size) == Some(HEADER_LIST_BYTES)
        },
    },
    ByDesign {
        what: "a request's header list over the limit gets 431 and NO_ERROR, even if it is malformed",
        why: "RFC 9113, section 8.1: a large list is no protocol error; h2 checks it first, or sends PROTOCOL_ERROR",
        is: |script, this| {
            let is_answered = this.ours.heads_sent.get(&this.frame.stream) == Some(&1);
            script.role == Role::Server
                && is_answered
                && matches!(this.our_reset(), None | Some(OK))
                && this.ours.call_of(&this.frame).heads.is_empty()
                && this.their_reset().or(this.theirs.goaway) == Some(PROTOCOL_ERROR)
        },
    },
    ByDesign {
        what: "a path has no fragment",
        why: "RFC 9113, section 8.3.1: it is a path and a query; h2 drops everything after '#'",
        is: |script, this| {
            script.role == Role::Server
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && this.value(":path").is_some_and(|path| path.contains(&b'#'))
        },
    },
    ByDesign {
        what: "a stream whose response or trailers exceed the limit is reset with ENHANCE_YOUR_CALM",
        why: "RFC 9113, section 7; h2 sends PROTOCOL_ERROR, and accepts trailers",
        is: |_, this| this.our_reset() == Some(ENHANCE_YOUR_CALM),
    },
    ByDesign {
        what: "WINDOW_UPDATE of a stream by 0 is a stream error",
        why: "RFC 9113, section 6.9; h2 closes the connection",
        is: |_, this| {
            this.frame.kind == WINDOW_UPDATE
                && this.frame.stream != 0
                && this.frame.number(0) & 0x7fff_ffff == 0
                && this.theirs.goaway == Some(PROTOCOL_ERROR)
                && this.ours.goaway.is_none()
        },
    },
    ByDesign {
        what: "a window over 2^31-1 is an error even if the stream has sent everything",
        why: "RFC 9113, section 6.9.1 makes no exception; h2 does",
        is: |_, this| {
            this.frame.kind == WINDOW_UPDATE
                && this.our_reset() == Some(FLOW_CONTROL_ERROR)
                && this.theirs == this.before
        },
    },
    ByDesign {
        what: "RST_STREAM is reported while the stream's end is still queued",
        why: "the call has failed; h2 treats a stream as closed once its end is queued",
        is: |_, this| {
            this.frame.kind == RST_STREAM
                && this.theirs == this.before
                && this.ours.call_of(&this.frame).reset.is_some()
        },
    },
    ByDesign {
        what: "PRIORITY can be a connection error",
        why: "a stream that does not exist cannot be reset; h2 resets it. RFC 9113 has no rule for it any more",
        is: |_, this| this.frame.kind == PRIORITY && this.ours.goaway == Some(PROTOCOL_ERROR),
    },
    ByDesign {
        what: "PRIORITY with a wrong length is a stream error",
        why: "RFC 9113, section 6.3; h2 closes the connection",
        is: |_, this| this.frame.kind == PRIORITY && this.our_reset() == Some(FRAME_SIZE_ERROR),
    },
    ByDesign {
        what: "PUSH_PROMISE is refused at once",
        why: "RFC 9113, section 8.4: our peers may not push; h2 waits for the end of its block first",
        is: |_, this| this.frame.kind == PUSH_PROMISE && this.ours.goaway == Some(PROTOCOL_ERROR),
    },
    ByDesign {
        what: "a server cannot enable push",
        why: "RFC 9113, section 6.5.2; h2 accepts it",
        is: |script, this| {
            script.role == Role::Client
                && this.frame.kind == SETTINGS
                && this.ours.goaway == Some(PROTOCOL_ERROR)
                && this.frame.payload.chunks(6).any(|setting| setting == [0, 2, 0, 0, 0, 1])
        },
    },
    ByDesign {
        what: "frames after END_STREAM are STREAM_CLOSED",
        why: "RFC 9113, section 5.1: a stream error, or a connection error after both halves; h2 has other codes",
        is: |_, this| {
            let call = this.before.call_of(&this.frame);
            matches!(this.frame.kind, DATA | HEADERS | CONTINUATION)
                && (this.our_reset() == Some(STREAM_CLOSED) || this.ours.goaway == Some(STREAM_CLOSED))
                && (call.is_ended || call.reset.is_some() || this.before.ends_sent.contains(&this.frame.stream))
        },
    },
    ByDesign {
        what: "a stream with a malformed response is reset even if the response has END_STREAM",
        why: "our half may still be open; h2 then sends nothing",
        is: |_, this| {
            let reset = Some(PROTOCOL_ERROR);
            this.our_reset() == reset && this.theirs.call_of(&this.frame).reset == reset && this.their_reset().is_none()
        },
    },
    ByDesign {
        what: "a field block is checked when it is complete",
        why: "its table entries count even if it is malformed; h2 stops at the first frame, and then at the next one",
        is: |_, this| this.is_headers() && !this.frame.has(END_HEADERS) && this.ours == this.before,
    },
    ByDesign {
        what: "a response has no pseudo-headers of requests",
        why: "RFC 9113, section 8.3; h2 accepts them",
        is: |script, this| {
            script.role == Role::Client
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && [":method", ":path", ":scheme", ":authority", ":protocol"]
                    .iter()
                    .any(|name| this.value(name).is_some())
        },
    },
    ByDesign {
        what: "an interim response does not end the stream",
        why: "RFC 9113, section 8.1; h2 accepts it, and fails when no other response follows",
        is: |script, this| {
            script.role == Role::Client
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && this.value(":status").is_some_and(|status| status.starts_with(b"1"))
        },
    },
    ByDesign {
        what: "the user decides when to close after GOAWAY",
        why: "see Connection::is_finished; h2 closes once it has no streams",
        is: |_, this| {
            (this.is_going || this.frame.kind == GOAWAY) && this.theirs.goaway == Some(OK) && this.ours.goaway.is_none()
        },
    },
    ByDesign {
        what: "DATA before the response's header section is a stream error",
        why: "RFC 9113, section 8.1.1: malformed; h2 closes the connection",
        is: |script, this| {
            script.role == Role::Client
                && this.frame.kind == DATA
                && this.our_reset() == Some(PROTOCOL_ERROR)
                && this.theirs.goaway == Some(PROTOCOL_ERROR)
        },
    },
];
