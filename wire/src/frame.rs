//! The format of frames (RFC 9113 sections 4 and 6).

/// The client's connection preface (section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame header.
pub(crate) const HEAD_BYTES: usize = 9;

/// The values that SETTINGS_MAX_FRAME_SIZE may have.
pub(crate) const FRAME_BYTES: std::ops::RangeInclusive<u32> = 16_384..=16_777_215;

/// The highest stream identifier.
pub(crate) const MAX_STREAM: u32 = (1 << 31) - 1;

/// Frame types.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags. Different frame types use the same bit for different flags, such as ACK and END_STREAM.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (section 6.5.2, RFC 8441 section 3).
pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// A frame header (section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    /// The frame header at the start of `bytes`; `None` when they are too few.
    #[inline]
    pub(crate) fn parse(bytes: &[u8]) -> Option<Head> {
        let head: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Head { length, kind, flags, stream: u32::from_be_bytes(stream) & MAX_STREAM })
    }

    #[inline]
    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(crate) fn bytes(self) -> [u8; HEAD_BYTES] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    /// Appends a frame with this payload.
    #[inline]
    pub(crate) fn write(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&Head { length: payload.len(), kind, flags, stream }.bytes());
        out.extend_from_slice(payload);
    }
}

/// The 32-bit number at the start of a payload. The caller has checked that there are four bytes.
#[inline]
pub(crate) fn number(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Appends one setting.
pub(crate) fn write_setting(name: u16, value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&name.to_be_bytes());
    out.extend_from_slice(&value.to_be_bytes());
}

/// The settings in the payload of a SETTINGS frame.
pub(crate) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload.chunks_exact(6).map(|bytes| (u16::from_be_bytes([bytes[0], bytes[1]]), number(&bytes[2..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let head = Head { length: 0x01_02_03, kind: kind::HEADERS, flags: flag::END_HEADERS, stream: 0x7f01_0203 };
        assert_eq!(Head::parse(&head.bytes()), Some(head));
        assert_eq!(Head::parse(&head.bytes()[..8]), None);
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        let mut bytes = Head { length: 0, kind: kind::PING, flags: 0, stream: 5 }.bytes();
        bytes[5] |= 0x80;
        assert_eq!(Head::parse(&bytes).map(|head| head.stream), Some(5));
    }

    #[test]
    fn settings_are_read_as_they_were_written() {
        let mut out = Vec::new();
        write_setting(setting::MAX_FRAME_SIZE, 20_000, &mut out);
        write_setting(0xabcd, u32::MAX, &mut out);
        assert_eq!(settings(&out).collect::<Vec<_>>(), [(setting::MAX_FRAME_SIZE, 20_000), (0xabcd, u32::MAX)]);
    }
}
