//! Properties of every list and every block.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Fields like those of calls: known names, other names and secrets, with values that repeat and values that do not.
fn field() -> impl Strategy<Value = (String, String)> {
    let known =
        prop::sample::select(vec!["te", "accept-encoding", "grpc-timeout", "content-type", "cookie", "traceparent"]);
    let name = prop_oneof![known.prop_map(str::to_owned), "x-[a-d]", "[a-z]{1,40}"];
    let value = prop_oneof![Just("gzip, deflate".to_owned()), "[ab]{0,2}", "[!-~]{0,80}", "[!-~\u{80}-\u{ff}]{60,300}"];
    (name, value)
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let pseudo = (prop::sample::select(vec!["GET", "POST", "PUT"]), "/([a-c]{1,3}|[a-z?]{5})?");
    (pseudo, vec(field(), 0..20)).prop_map(|((method, path), mut fields)| {
        fields.insert(0, (":method".into(), method.into()));
        fields.insert(1, (":path".into(), path));
        fields
    })
}

fn headers(fields: &[(String, String)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    headers
}

/// A change between two blocks.
#[derive(Clone, Debug)]
enum Change {
    None,
    /// The receiver's SETTINGS_HEADER_TABLE_SIZE, perhaps more than once.
    Table(Vec<u32>),
}

fn change() -> impl Strategy<Value = Change> {
    let size = prop_oneof![Just(0), 0..300_u32, 0..10_000_u32];
    prop_oneof![4 => Just(Change::None), 1 => vec(size, 1..3).prop_map(Change::Table)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Lists pass through two connections, as in a relay, with tables whose sizes change.
    #[test]
    fn lists_pass_through_a_relay_unchanged(
        calls in vec((change(), fields()), 1..20),
        own_bytes in prop_oneof![Just(4096_u32), 0..200_u32, 0..20_000_u32],
    ) {
        let (mut client, mut server) = (Encoder::new(4096), Decoder::new(DEFAULT_TABLE_BYTES));
        let (mut upstream, mut backend) = (Encoder::new(own_bytes), Decoder::new(DEFAULT_TABLE_BYTES));
        let mut at_relay = Headers::new();
        for (change, fields) in calls {
            if let Change::Table(sizes) = change {
                for size in sizes {
                    upstream.set_peer_table_bytes(size);
                    backend.set_max_table_bytes(size);
                }
            }
            let sent = headers(&fields);
            server.decode(&encoded(&mut client, &sent), NO_LIMIT, &mut at_relay).expect("it is a block");
            prop_assert_eq!(&at_relay, &sent);
            prop_assert_eq!(at_relay.list_bytes(), sent.list_bytes());
            let received = decoded(&mut backend, &encoded(&mut upstream, &at_relay)).expect("it is a block");
            prop_assert_eq!(&received, &sent);
            prop_assert!(backend.table.bytes() <= own_bytes as usize);
            prop_assert_eq!(upstream.table.bytes(), backend.table.bytes());
            prop_assert!(upstream.table.text_capacity() <= 4 * 10_000);
        }
    }

    /// Another implementation reads what we write.
    #[test]
    fn another_decoder_agrees(calls in vec((prop::option::of(0..5000_u32), fields()), 1..12)) {
        let (mut encoder, mut other) = (Encoder::new(4096), fluke_hpack::Decoder::new());
        for (size, fields) in calls {
            size.into_iter().for_each(|size| encoder.set_peer_table_bytes(size));
            let sent = headers(&fields);
            let received = other.decode(&encoded(&mut encoder, &sent)).expect("it is a block");
            let sent: Vec<_> = sent.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            prop_assert_eq!(received, sent);
        }
    }

    /// We read what another implementation writes. It inserts every field into the table.
    #[test]
    fn another_encoder_is_understood(calls in vec(fields(), 1..12)) {
        let (mut other, mut decoder) = (fluke_hpack::Encoder::new(), Decoder::new(4096));
        for fields in calls {
            let sent = headers(&fields);
            let received = decoded(&mut decoder, &other.encode(sent.iter())).expect("it is a block");
            prop_assert_eq!(received, sent);
        }
    }

    /// Any bytes are accepted or refused, within bounds; and an accepted list can be sent on.
    #[test]
    fn any_bytes_are_accepted_or_refused(blocks in vec(vec(any::<u8>(), 0..200), 1..20), limit in 0..3000_usize) {
        let (mut decoder, mut encoder) = (Decoder::new(4096), Encoder::new(4096));
        let (mut next, mut headers) = (Decoder::new(4096), Headers::new());
        for block in blocks {
            let Ok(found) = decoder.decode(&block, limit, &mut headers) else { continue };
            prop_assert!(headers.list_bytes() <= limit);
            prop_assert!(decoder.table.bytes() <= 4096 && decoder.table.text_capacity() <= 4 * 4096);
            if found == Decoded::default() {
                prop_assert_eq!(&decoded(&mut next, &encoded(&mut encoder, &headers)).expect("it is a block"), &headers);
            }
        }
    }

    /// The same with blocks that are almost correct.
    #[test]
    fn damaged_blocks_are_accepted_or_refused(
        calls in vec(fields(), 1..10),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
        for fields in calls {
            let mut block = encoded(&mut encoder, &headers(&fields));
            for (at, byte) in &damage {
                let at = at.index(block.len());
                block[at] = *byte;
            }
            let mut received = Headers::new();
            let _ = decoder.decode(&block, 2000, &mut received);
            prop_assert!(received.list_bytes() <= 2000);
            prop_assert!(received.iter().all(|(name, _)| !name.is_empty()));
        }
    }
}

/// If all hashes are the same, fields are still distinguished.
#[test]
fn colliding_hashes_cost_only_bytes() {
    let (mut table, mut index) = (table::Table::new(4096), index::Index::default());
    let other = Name::other("x-own").id();
    for value in 0..20_u8 {
        table.insert(other, b"x-own", &[value], 7, None);
        index.insert(7, &table);
        let found = index.find(7, &table, |entry| table.value(entry) == [value]);
        assert_eq!(found, Some(0));
        assert_eq!(index.find(7, &table, |entry| table.value(entry) == [value.wrapping_add(1)]), None);
    }
}
