//! The Huffman code of strings (RFC 7541, section 5.2 and appendix B).

use super::fault::HpackError;

/// The length of each symbol's code in bits; the last is EOS. The code is canonical (codes of a length follow each
/// other in the order of their symbols, and continue after the codes of shorter lengths), so the lengths define it
/// completely.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

const MAX_LENGTH: usize = 30;

/// How many bits are decoded together. Most characters take 5 or 6 bits, so these mostly hold two.
const STEP: usize = 12;

/// Zero to two symbols that follow each other.
#[derive(Clone, Copy)]
struct Step {
    symbols: [u8; 2],
    /// The length of their codes together in bits; 0 when not even one code is complete.
    bits: u8,
    count: u8,
}

/// The code of each symbol, and its length.
static CODES: [(u32, u8); 257] = CODE.codes;
/// The symbols at the start of the next [`STEP`] bits, by these bits.
static STEPS: [Step; 1 << STEP] = steps();
/// Symbols in the order of their codes.
static SORTED: [u16; 257] = CODE.sorted;
/// For each length: the end of its codes, its first code, and the index of that code in [`SORTED`].
static LONG: [Length; MAX_LENGTH + 1] = CODE.lengths;

const CODE: Code = code();

struct Code {
    codes: [(u32, u8); 257],
    sorted: [u16; 257],
    lengths: [Length; MAX_LENGTH + 1],
}

#[derive(Clone, Copy)]
struct Length {
    /// The first value above the codes of this length or less, with codes aligned to the top of 32 bits. It needs 33
    /// bits for the length of EOS's code.
    end: u64,
    first: u32,
    at: u16,
}

const fn code() -> Code {
    let mut codes = [(0, 0); 257];
    let mut sorted = [0; 257];
    let mut lengths = [Length { end: 0, first: 0, at: 0 }; MAX_LENGTH + 1];
    let mut next: u32 = 0;
    let mut at = 0;
    let mut length = 1;
    while length <= MAX_LENGTH {
        next <<= 1;
        lengths[length].first = next;
        lengths[length].at = at as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                codes[symbol] = (next, length as u8);
                sorted[at] = symbol as u16;
                next += 1;
                at += 1;
            }
            symbol += 1;
        }
        lengths[length].end = (next as u64) << (32 - length);
        length += 1;
    }
    assert!(at == 257 && next == 1 << MAX_LENGTH, "the code is complete");
    Code { codes, sorted, lengths }
}

const fn steps() -> [Step; 1 << STEP] {
    let mut steps = [Step { symbols: [0; 2], bits: 0, count: 0 }; 1 << STEP];
    let mut bits = 0;
    while bits < 1 << STEP {
        let step = &mut steps[bits];
        while step.count < 2
            && let Some((symbol, length)) = first_symbol(bits, step.bits)
        {
            step.symbols[step.count as usize] = symbol;
            step.count += 1;
            step.bits += length;
        }
        bits += 1;
    }
    steps
}

/// The symbol whose code starts after the first `from` of [`STEP`] bits, and the code's length; `None` if the code is
/// not complete.
const fn first_symbol(bits: usize, from: u8) -> Option<(u8, u8)> {
    let left = STEP - from as usize;
    let bits = bits & ((1 << left) - 1);
    let mut length = 1;
    while length <= left {
        let Length { end, first, at } = CODE.lengths[length];
        let code = bits >> (left - length);
        if (code as u64) << (32 - length) < end {
            return Some((CODE.sorted[at as usize + code - first as usize] as u8, length as u8));
        }
        length += 1;
    }
    None
}

/// How many bytes the text takes in Huffman code.
pub(crate) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|&byte| usize::from(LENGTHS[usize::from(byte)])).sum();
    bits.div_ceil(8)
}

/// Appends the text in Huffman code.
pub(crate) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let mut bits: u64 = 0;
    let mut len = 0;
    for &byte in text {
        let (code, length) = CODES[usize::from(byte)];
        bits = bits << length | u64::from(code);
        len += u32::from(length);
        if len >= 32 {
            len -= 32;
            out.extend_from_slice(&((bits >> len) as u32).to_be_bytes());
        }
    }
    // Less than four bytes are left. The last byte is padded with the first bits of EOS, which are ones.
    let padding = (8 - len % 8) % 8;
    bits = bits << padding | ((1 << padding) - 1);
    len += padding;
    let rest = (bits as u32).to_be_bytes();
    out.extend_from_slice(&rest[4 - len as usize / 8..]);
}

/// Decodes Huffman code and appends the text.
pub(crate) fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let start = out.len();
    // No symbol's code is shorter than 5 bits. One byte more, since a step always writes two symbols, even if it has
    // one.
    out.resize(start + code.len() * 8 / 5 + 1, 0);
    let len = decode_into(code, &mut out[start..])?;
    out.truncate(start + len);
    Ok(())
}

fn decode_into(mut code: &[u8], out: &mut [u8]) -> Result<usize, HpackError> {
    // The next bits, `len` of them, are at the top; zeros are below.
    let mut bits: u64 = 0;
    let mut len: u32 = 0;
    let mut at = 0;
    loop {
        if len <= 32 {
            if let Some((chunk, rest)) = code.split_first_chunk::<4>() {
                bits |= u64::from(u32::from_be_bytes(*chunk)) << (32 - len);
                len += 32;
                code = rest;
            } else {
                while let Some((&byte, rest)) = code.split_first() {
                    bits |= u64::from(byte) << (56 - len);
                    len += 8;
                    code = rest;
                }
                return finish(bits, len, out, at);
            }
        }
        while len >= 30 {
            let Step { symbols, bits: taken, count } = STEPS[(bits >> (64 - STEP)) as usize];
            if count == 0 {
                let (symbol, length) = long(bits).ok_or(HpackError::Huffman)?;
                out[at] = symbol;
                at += 1;
                bits <<= length;
                len -= u32::from(length);
                continue;
            }
            out[at..at + 2].copy_from_slice(&symbols);
            at += usize::from(count);
            bits <<= taken;
            len -= u32::from(taken);
        }
    }
}

/// Decodes the last symbols, and checks the padding: less than a byte of the first bits of EOS.
fn finish(mut bits: u64, mut len: u32, out: &mut [u8], mut at: usize) -> Result<usize, HpackError> {
    // After ones are appended, correct padding looks like EOS, and a truncated code is longer than the bits that are
    // left.
    bits |= u64::MAX.checked_shr(len).unwrap_or(0);
    loop {
        let Step { symbols, bits: taken, count } = STEPS[(bits >> (64 - STEP)) as usize];
        if count > 0 && u32::from(taken) <= len {
            out[at..at + 2].copy_from_slice(&symbols);
            at += usize::from(count);
            bits = bits << taken | ((1 << taken) - 1);
            len -= u32::from(taken);
            continue;
        }
        // A long symbol, or the last one.
        match symbol(bits) {
            Some((symbol, length)) if u32::from(length) <= len => {
                out[at] = symbol;
                at += 1;
                bits = bits << length | ((1 << length) - 1);
                len -= u32::from(length);
            }
            None if len < 8 => return Ok(at),
            _ => return Err(HpackError::Huffman),
        }
    }
}

/// The symbol at the start of the bits, and its length; `None` for EOS.
fn symbol(bits: u64) -> Option<(u8, u8)> {
    match STEPS[(bits >> (64 - STEP)) as usize] {
        Step { count: 0, .. } => long(bits),
        Step { symbols: [symbol, _], .. } => Some((symbol, LENGTHS[usize::from(symbol)])),
    }
}

/// The symbol at the start of the bits, if it has more than [`STEP`] bits, and its length; `None` for EOS.
#[cold]
fn long(bits: u64) -> Option<(u8, u8)> {
    let top = bits >> 32;
    let length = (STEP + 1..=MAX_LENGTH).find(|&length| top < LONG[length].end)?;
    let Length { first, at, .. } = LONG[length];
    let symbol = SORTED[usize::from(at) + ((top >> (32 - length)) as u32 - first) as usize];
    u8::try_from(symbol).ok().map(|symbol| (symbol, length as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: usize = 256;

    fn coded(text: &[u8]) -> Vec<u8> {
        let mut code = Vec::new();
        encode(text, &mut code);
        assert_eq!(code.len(), encoded_len(text));
        code
    }

    fn decoded(code: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut text = Vec::new();
        decode(code, &mut text).map(|()| text)
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        let some = [
            (0, 0x1ff8, 13),
            (1, 0x7fffd8, 23),
            (usize::from(b'\n'), 0x3ffffffc, 30),
            (usize::from(b'0'), 0, 5),
            (usize::from(b'a'), 3, 5),
            (usize::from(b'z'), 0x7b, 7),
            (usize::from(b'X'), 0xfc, 8),
            (usize::from(b'\\'), 0x7fff0, 19),
            (128, 0xfffe6, 20),
            (249, 0xffffffe, 28),
            (255, 0x3ffffee, 26),
            (EOS, 0x3fffffff, 30),
        ];
        some.iter().for_each(|&(symbol, code, length)| assert_eq!(CODES[symbol], (code, length), "{symbol}"));
    }

    #[test]
    fn every_text_decodes_to_itself() {
        let all: Vec<u8> = (0..=255).collect();
        for from in 0..=255 {
            for len in 0..9 {
                let text = &all[from..all.len().min(from + len)];
                assert_eq!(decoded(&coded(text)).as_deref(), Ok(text));
            }
        }
        assert_eq!(decoded(&coded(&all)), Ok(all));
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        // "0" is 00000.
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Ok(b"0".as_slice()));
        assert_eq!(decoded(&[0b0000_0110]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0xff]), Err(HpackError::Huffman));
        // Eight symbols of five bits leave no room for padding.
        assert_eq!(decoded(&[0; 5]).as_deref(), Ok(b"00000000".as_slice()));
        assert_eq!(decoded(&[0, 0, 0, 0, 0, 0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[]).as_deref(), Ok(b"".as_slice()));
    }

    #[test]
    fn eos_is_an_error_at_any_position() {
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0b0000_0111, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Err(HpackError::Huffman));
        // A truncated code.
        let code = coded(b"\n");
        assert_eq!(decoded(&code[..3]), Err(HpackError::Huffman));
    }
}
