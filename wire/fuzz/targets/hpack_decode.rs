//! Header blocks: a decoder accepts or refuses any bytes, and an accepted list is the same after it was encoded and
//! decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::Headers;
use weft_wire::hpack::{Decoder, Encoder};

fuzz_target!(|data: &[u8]| {
    let Some((&first, mut rest)) = data.split_first() else { return };
    let table_bytes = [0, 60, 200, 4096, 4096, 4096, 65_536, u32::MAX][usize::from(first % 8)];
    let mut decoder = Decoder::new(table_bytes);
    let mut encoder = Encoder::new(table_bytes.min(65_536));
    encoder.set_peer_table_bytes(table_bytes.min(65_536));
    let mut next = Decoder::new(table_bytes.min(65_536));
    let (mut headers, mut again, mut block) = (Headers::new(), Headers::new(), Vec::new());
    while let Some((&length, more)) = rest.split_first() {
        let (one, more) = more.split_at(more.len().min(usize::from(length)));
        rest = more;
        let Ok(decoded) = decoder.decode(one, 3_000, &mut headers) else { return };
        assert!(headers.list_bytes() <= 3_000);
        let size: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        assert_eq!(size, headers.list_bytes());
        if decoded.is_too_large || decoded.malformed.is_some() {
            continue;
        }
        block.clear();
        encoder.encode(&headers, &mut block);
        let decoded = next.decode(&block, usize::MAX, &mut again).expect("an encoded block can be decoded");
        assert_eq!(decoded.malformed, None);
        assert_eq!(headers, again);
        for (before, after) in headers.fields().zip(again.fields()) {
            assert!(after.is_sensitive || !before.is_sensitive, "a field stays never indexed");
        }
    }
});
