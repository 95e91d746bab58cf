//! The error codes of RST_STREAM and GOAWAY (RFC 9113 section 7).

use std::fmt;

/// An HTTP/2 error code. Codes that the RFC does not define are passed on unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Code {
            $(#[doc = $doc] pub const $name: Code = Code($value);)*

            /// The RFC's name of the code; `None` for one that it does not define.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    NO_ERROR = 0x0, "Not an error: a graceful end.";
    PROTOCOL_ERROR = 0x1, "The peer broke a rule, and no other code fits.";
    INTERNAL_ERROR = 0x2, "The sender failed.";
    FLOW_CONTROL_ERROR = 0x3, "More was sent than the window allowed, or a window grew past 2^31-1.";
    SETTINGS_TIMEOUT = 0x4, "SETTINGS were not acknowledged in time.";
    STREAM_CLOSED = 0x5, "A frame arrived on a stream that was half-closed or closed.";
    FRAME_SIZE_ERROR = 0x6, "A frame has a length that its type does not allow.";
    REFUSED_STREAM = 0x7, "The stream was refused before it was processed: the request may be retried.";
    CANCEL = 0x8, "The stream is no longer needed.";
    COMPRESSION_ERROR = 0x9, "A field block could not be decoded, so the dynamic tables no longer agree.";
    CONNECT_ERROR = 0xa, "The connection that a CONNECT asked for was reset or closed.";
    ENHANCE_YOUR_CALM = 0xb, "The peer causes more load than it may.";
    INADEQUATE_SECURITY = 0xc, "The transport is not secure enough.";
    HTTP_1_1_REQUIRED = 0xd, "The peer wants HTTP/1.1 instead.";
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => out.write_str(name),
            None => write!(out, "{:#x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_shown_by_their_names_in_the_rfc() {
        assert_eq!(Code::ENHANCE_YOUR_CALM.to_string(), "ENHANCE_YOUR_CALM");
        assert_eq!(Code(0xd), Code::HTTP_1_1_REQUIRED);
        assert_eq!(Code(0xe).to_string(), "0xe");
    }
}
