mod properties;
mod vectors;

use super::*;
use crate::headers::{Headers, Name};

const NO_LIMIT: usize = usize::MAX;

fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    headers
}

fn encoded(encoder: &mut Encoder, headers: &Headers) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.encode(headers, &mut block);
    block
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Headers, HpackError> {
    let mut headers = Headers::new();
    let decoded = decoder.decode(block, NO_LIMIT, &mut headers)?;
    assert_eq!((decoded.is_too_large, decoded.malformed), (false, None));
    Ok(headers)
}

/// A literal with incremental indexing and a new name, both strings without Huffman code.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40, name.len() as u8];
    block.extend_from_slice(name.as_bytes());
    block.push(value.len() as u8);
    block.extend_from_slice(value.as_bytes());
    block
}

fn grpc_call() -> Headers {
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/shop.Cart/Add"),
        (":authority", "cart.shop.svc:8080"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.70.0"),
        ("x-own", "as is"),
    ])
}

/// A relay is cheap only if repeated fields take one byte each, on both of its connections.
#[test]
fn a_repeated_call_takes_one_byte_per_field() {
    let (mut client, mut server) = (Encoder::new(4096), Decoder::new(4096));
    let (mut upstream, mut backend) = (Encoder::new(4096), Decoder::new(4096));
    let call = grpc_call();
    let mut lengths = Vec::new();
    for _ in 0..4 {
        let at_relay = decoded(&mut server, &encoded(&mut client, &call)).expect("it is a block");
        let block = encoded(&mut upstream, &at_relay);
        assert_eq!(decoded(&mut backend, &block).expect("it is a block"), call);
        lengths.push(block.len());
    }
    assert_eq!(lengths[3], call.len());
    assert!(lengths[0] > lengths[3] * 4);
}

#[test]
fn a_field_that_is_sent_once_does_not_enter_the_table() {
    let mut encoder = Encoder::new(4096);
    encoded(&mut encoder, &list(&[("x-own", "a"), ("x-own", "b")]));
    assert_eq!(encoder.table.len(), 0);
    encoded(&mut encoder, &list(&[("x-own", "a")]));
    assert_eq!(encoder.table.len(), 1);
}

/// A field whose values differ is inserted once, for its name.
#[test]
fn a_varying_field_takes_one_entry_for_its_name() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let mut lengths = Vec::new();
    for millis in 100..110 {
        let headers = list(&[("grpc-timeout", &format!("{millis}m")), ("content-length", &millis.to_string())]);
        let block = encoded(&mut encoder, &headers);
        assert_eq!(decoded(&mut decoder, &block), Ok(headers));
        lengths.push(block.len());
    }
    assert_eq!(encoder.table.len(), 1);
    assert!(lengths[9] + 8 < lengths[0], "{lengths:?}");
    // With an empty value, it is treated like any other field.
    (0..3).for_each(|_| drop(encoded(&mut encoder, &list(&[("grpc-message", "")]))));
    assert_eq!(encoded(&mut encoder, &list(&[("grpc-message", "")])), [0xbe]);
    let paths = ["/a?q=1", "/a?q=1", "/a?q=1"];
    paths.iter().for_each(|path| drop(encoded(&mut encoder, &list(&[(":path", path)]))));
    assert_eq!(encoder.table.len(), 2);
}

#[test]
fn secrets_never_enter_a_table_and_stay_marked() {
    let names = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-auth-token",
        "client-secret",
        "x-api-key-2",
    ];
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let mut headers = Headers::new();
    names.iter().for_each(|name| headers.append_bytes(name.as_bytes(), b"hidden"));
    headers.append_sensitive(b"x-plain", b"hidden");
    headers.append_sensitive(b"te", b"hidden");
    for _ in 0..3 {
        let received = decoded(&mut decoder, &encoded(&mut encoder, &headers)).expect("it is a block");
        assert_eq!(received, headers);
        assert!(received.fields().all(|field| field.is_sensitive));
        // They stay marked on later hops.
        headers.copy_from(&received);
    }
    assert_eq!((encoder.table.len(), decoder.table.len()), (0, 0));
    assert!(!format!("{headers:?}").contains("hidden"));
}

#[test]
fn a_list_over_the_limit_still_updates_the_table() {
    let mut decoder = Decoder::new(4096);
    let mut block = literal("x-first", "1");
    block.extend(literal("x-second", "2"));
    block.extend(literal("x-third", "3"));
    let mut headers = Headers::new();
    let limit = "x-first1".len() + 32 + "x-second2".len() + 31;
    let found = decoder.decode(&block, limit, &mut headers).expect("it is a block");
    assert!(found.is_too_large);
    assert_eq!(headers, list(&[("x-first", "1")]));
    assert_eq!(decoder.decode(&block, limit + 1 + 7 + 1 + 32, &mut headers), Ok(Decoded::default()));
    assert_eq!(headers.list_bytes(), limit + 1 + 7 + 1 + 32);
    let again = decoded(&mut decoder, &[0xc0, 0xbf, 0xbe]);
    assert_eq!(again, Ok(list(&[("x-first", "1"), ("x-second", "2"), ("x-third", "3")])));
}

#[test]
fn a_malformed_list_still_updates_the_table() {
    let mut decoder = Decoder::new(4096);
    let mut headers = Headers::new();
    let mut block = literal("X-Upper", "1");
    block.extend(literal("x-good", "2"));
    let found = decoder.decode(&block, NO_LIMIT, &mut headers).expect("it is a block");
    assert_eq!(found.malformed, Some(Malformed::Name));
    assert_eq!(decoded(&mut decoder, &[0xbe]), Ok(list(&[("x-good", "2")])));
    // The table entry remembers the fault, even if only its name is used.
    for block in [vec![0xbf], vec![0x0f, 63 - 15, 1, b'v']] {
        let found = decoder.decode(&block, NO_LIMIT, &mut headers).expect("it is a block");
        assert_eq!(found.malformed, Some(Malformed::Name));
    }
}

#[test]
fn each_fault_of_a_list_is_reported() {
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<Malformed>);
    let cases: &[Case<'_>] = &[
        (&[("x-a", "tab\tand \u{e4}")], None),
        (&[("x-a", "")], None),
        (&[("a!#$%&'*+-.^_`|~9", "1")], None),
        (&[("", "1")], Some(Malformed::Name)),
        (&[("x a", "1")], Some(Malformed::Name)),
        (&[("x:a", "1")], Some(Malformed::Name)),
        (&[("Te", "1")], Some(Malformed::Name)),
        (&[("x-\u{e4}", "1")], Some(Malformed::Name)),
        (&[("x-a", "\0")], Some(Malformed::Value)),
        (&[("x-a", "a\r\nb: c")], Some(Malformed::Value)),
        (&[("x-a", "\u{7f}")], Some(Malformed::Value)),
        (&[("x-a", " a\0")], Some(Malformed::Value)),
        (&[(":path", "/ ")], Some(Malformed::Space)),
        (&[(":path", "/\0")], Some(Malformed::Value)),
        (&[(":path", "/"), ("te", "trailers"), (":method", "GET")], Some(Malformed::LatePseudo)),
        (&[(":path", "/"), (":path", "/a")], Some(Malformed::RepeatedPseudo)),
        (&[(":own", "/")], Some(Malformed::UnknownPseudo)),
        (&[(":", "/")], Some(Malformed::UnknownPseudo)),
    ];
    for (fields, fault) in cases {
        let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
        let found = Decoder::new(4096).decode(&block, NO_LIMIT, &mut Headers::new()).expect("it is a block");
        assert_eq!(found.malformed, *fault, "{fields:?}");
    }
}

#[test]
fn whitespace_around_a_value_is_removed_in_every_representation() {
    let mut decoder = Decoder::new(4096);
    let trimmed = Ok(list(&[("x-a", "a b")]));
    assert_eq!(decoded(&mut decoder, &literal("x-a", " \ta b\t ")), trimmed);
    assert_eq!(decoded(&mut decoder, &[0xbe]), trimmed, "from the table");
    assert_eq!(decoded(&mut decoder, &literal("x-a", "\t ")), Ok(list(&[("x-a", "")])));
    let mut headers = Headers::new();
    decoder.decode(&literal("te", " trailers"), NO_LIMIT, &mut headers).expect("it is a block");
    assert_eq!((headers.get(Name::TE), headers.list_bytes()), (Some(&b"trailers"[..]), 2 + 8 + 32));
}

#[test]
fn broken_blocks_are_refused() {
    let cases: &[(&[u8], HpackError)] = &[
        (&[0x80], HpackError::Index),
        (&[0xbe], HpackError::Index),
        (&[0x7e, 1, b'a'], HpackError::Index),
        (&[0xff], HpackError::Truncated),
        (&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], HpackError::Integer),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], HpackError::Integer),
        (&[0x40], HpackError::Truncated),
        (&[0x40, 3, b'a'], HpackError::Truncated),
        (&[0x40, 1, b'a'], HpackError::Truncated),
        (&[0x40, 1, b'a', 0x7f, 0xff, 0xff, 0xff, 0x7f], HpackError::Truncated),
        (&[0x40, 1, b'a', 0x81, 0xff], HpackError::Huffman),
        (&[0x3f, 0xe2, 0x1f], HpackError::TableSize),
        (&[0x82, 0x20], HpackError::TableSize),
    ];
    for (block, error) in cases {
        assert_eq!(Decoder::new(4096).decode(block, NO_LIMIT, &mut Headers::new()), Err(*error), "{block:x?}");
    }
}

#[test]
fn the_encoder_sends_the_smallest_table_size_and_the_last() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let call = grpc_call();
    for _ in 0..3 {
        decoded(&mut decoder, &encoded(&mut encoder, &call)).expect("it is a block");
    }
    assert!(!decoder.table.is_empty());
    encoder.set_peer_table_bytes(100);
    encoder.set_peer_table_bytes(2000);
    decoder.set_max_table_bytes(100);
    decoder.set_max_table_bytes(2000);
    let block = encoded(&mut encoder, &call);
    assert_eq!(&block[..5], [0x3f, 100 - 31, 0x3f, 0xb1, 0x0f]);
    assert_eq!(decoded(&mut decoder, &block), Ok(list_of(&call)));
    assert_eq!(decoder.table.max_bytes(), 2000);
    // No size update is needed: the peer allows more than we want, and then the size that it already knows.
    encoder.set_peer_table_bytes(65_536);
    encoder.set_peer_table_bytes(2000);
    let block = encoded(&mut encoder, &call);
    assert_eq!(decoded(&mut decoder, &block), Ok(list_of(&call)));
}

fn list_of(headers: &Headers) -> Headers {
    let mut copy = Headers::new();
    copy.copy_from(headers);
    copy
}

#[test]
fn a_smaller_own_table_size_is_sent_in_the_first_block() {
    let block = encoded(&mut Encoder::new(0), &list(&[(":method", "GET")]));
    assert_eq!(block, [0x20, 0x82]);
    let mut encoder = Encoder::new(100_000);
    assert_eq!(encoded(&mut encoder, &list(&[(":method", "GET")])), [0x82]);
    encoder.set_peer_table_bytes(4127);
    assert_eq!(encoded(&mut encoder, &list(&[(":method", "GET")])), [0x3f, 0x80, 0x20, 0x82]);
}

#[test]
fn a_peer_must_shrink_its_table_when_the_setting_shrinks() {
    let mut decoder = Decoder::new(4096);
    decoded(&mut decoder, &literal("x-own", "1")).expect("it is a block");
    decoder.set_max_table_bytes(100);
    decoder.set_max_table_bytes(300);
    let mut headers = Headers::new();
    assert_eq!(decoder.decode(&[0x82], NO_LIMIT, &mut headers), Err(HpackError::TableSize));
    assert_eq!(decoder.decode(&[0x3f, 0xa9, 1, 0x82], NO_LIMIT, &mut headers), Err(HpackError::TableSize));
    assert_eq!(decoded(&mut decoder, &[0x3f, 69, 0x3f, 0x8d, 2, 0xbe]), Ok(list(&[("x-own", "1")])));
    assert_eq!(decoded(&mut decoder, &[0xbe]), Ok(list(&[("x-own", "1")])));
}

#[test]
fn an_unused_encoder_and_decoder_have_allocated_nothing() {
    let (encoder, decoder) = (Encoder::new(4096), Decoder::new(4096));
    assert_eq!(encoder.table.text_capacity() + decoder.table.text_capacity(), 0);
    assert!(std::mem::size_of_val(&encoder) + std::mem::size_of_val(&decoder) < 320);
}

#[test]
fn changed_fields_are_encoded_with_their_new_values() {
    let (mut client, mut server) = (Encoder::new(4096), Decoder::new(4096));
    let (mut upstream, mut backend) = (Encoder::new(4096), Decoder::new(4096));
    for round in 0..6 {
        let mut call = decoded(&mut server, &encoded(&mut client, &grpc_call())).expect("it is a block");
        call.set(Name::METHOD, b"PUT");
        call.set(Name::AUTHORITY, if round % 2 == 0 { b"one" } else { b"two" });
        call.remove(Name::TE);
        call.set(Name::other("x-own"), b"changed");
        let received = decoded(&mut backend, &encoded(&mut upstream, &call)).expect("it is a block");
        assert_eq!(received, call);
        assert_eq!(received.method(), Some(b"PUT".as_slice()));
    }
}
