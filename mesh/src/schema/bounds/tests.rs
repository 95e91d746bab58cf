use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use super::*;
use crate::schema::{from_descriptor_set, testing::compile};

/// A message with a field that contains bytes.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    prost::encoding::bytes::encode(number, &bytes.to_vec(), &mut message);
    message
}

/// The name `a` in field 1, and then something else.
fn named(rest: &[u8]) -> Vec<u8> {
    [b"\x0a\x01a", rest].concat()
}

/// Elements that come to nearly 8 MiB, in messages within each other with these numbers: 1 is a file of the set.
fn bomb(numbers: &[u32], element: &[u8]) -> Vec<u8> {
    let many = element.repeat((limits::DESCRIPTOR_SET_BYTES - 256) / element.len());
    // Source info has no name in field 1.
    let content = |number: u32, inner: Vec<u8>| if number == 9 { inner } else { named(&inner) };
    numbers.iter().rev().fold(many, |inner, number| field(*number, &content(*number, inner)))
}

fn check(set: &[u8]) -> Result<(), SchemaError> {
    Bounds::default().check_set(set)
}

#[test]
fn sets_that_decode_to_much_more_than_they_weigh_are_refused() {
    let in_field = |number: u32| field(number, &named(b""));
    for (what, set) in [
        ("files", bomb(&[], &field(1, &named(b"")))),
        ("imports", bomb(&[1], b"\x1a\x00")),
        ("messages", bomb(&[1], &in_field(4))),
        ("messages in a message", bomb(&[1, 4], &in_field(3))),
        ("messages in messages", bomb(&[1, 4, 3, 3, 3], &in_field(3))),
        ("fields", bomb(&[1, 4], &in_field(2))),
        ("options of fields", bomb(&[1, 4], &field(2, &named(b"\x42\x00")))),
        ("oneofs", bomb(&[1, 4], &in_field(8))),
        ("ranges of extensions", bomb(&[1, 4], &field(5, b""))),
        ("reserved ranges", bomb(&[1, 4], &field(9, b""))),
        ("reserved names", bomb(&[1, 4], &field(10, b""))),
        ("extensions", bomb(&[1], &in_field(7))),
        ("extensions in a message", bomb(&[1, 4], &in_field(6))),
        ("enums", bomb(&[1], &in_field(5))),
        ("enums in a message", bomb(&[1, 4], &in_field(4))),
        ("values", bomb(&[1, 5], &in_field(2))),
        ("reserved ranges of an enum", bomb(&[1, 5], &field(4, b""))),
        ("reserved names of an enum", bomb(&[1, 5], &field(5, b""))),
        ("services", bomb(&[1], &in_field(6))),
        ("methods", bomb(&[1, 6], &in_field(2))),
        ("options of a file", bomb(&[1, 8], &field(999, b""))),
        ("options that are not interpreted", bomb(&[1, 6, 3], &field(999, b""))),
        ("options of methods", bomb(&[1, 6, 2, 4], &field(999, b""))),
        ("parts of names of options", bomb(&[1, 6, 2, 4, 999], &field(2, b""))),
        ("locations", bomb(&[1, 9], &field(1, b""))),
        ("paths of locations", bomb(&[1, 9], &field(1, &field(1, b"\x00\x00\x00")))),
        ("comments", bomb(&[1, 9, 1], &field(6, b""))),
        ("services that a contract stands in for", bomb(&[1, 6, 3, 50901], &field(4, b""))),
    ] {
        assert!(set.len() <= limits::DESCRIPTOR_SET_BYTES, "{what}: its size is not what is refused");
        let refused = from_descriptor_set(&set).map(|_| ());
        assert!(matches!(refused, Err(SchemaError::TooMuchMemory { .. })), "{what}: {refused:?}");
    }
}

/// A file with a package, which has this message.
fn file(name: &str, package: &str, message: &[u8]) -> Vec<u8> {
    let parts = [field(1, name.as_bytes()), field(2, package.as_bytes()), field(4, message)];
    field(1, &parts.concat())
}

/// A file with these messages and then these other parts.
fn with_messages(messages: &[Vec<u8>], rest: &[u8]) -> Vec<u8> {
    let messages: Vec<u8> = messages.iter().flat_map(|message| field(4, message)).collect();
    field(1, &[&field(1, b"t.proto"), &messages[..], rest].concat())
}

/// The library finds these parts by comparing all of them, one after the other: a few hundred KB would take minutes.
#[test]
fn sets_with_too_much_to_compare_are_refused() {
    let many = |number: u32, count: usize| field(number, &named(b"")).repeat(count);
    let fields_and_nested = |n: usize| named(&[many(2, n), many(3, n)].concat());
    let map_entry = |n: usize| named(&[many(2, n), field(7, b"\x38\x01")].concat());
    let fields_and_entry = |n: usize| named(&[many(2, n), field(3, &map_entry(n))].concat());
    let ranges = |n: usize| named(&field(5, b"").repeat(n));
    let side = limits::DESCRIPTOR_STEPS.isqrt();
    type Set<'a> = Box<dyn Fn(usize) -> Vec<u8> + 'a>;
    let sets: [(&str, Set); 6] = [
        ("fields and nested messages", Box::new(|n| with_messages(&[fields_and_nested(n)], b""))),
        ("the same, deeper", Box::new(|n| with_messages(&[named(&field(3, &fields_and_nested(n)))], b""))),
        ("several messages", Box::new(|n| with_messages(&vec![fields_and_nested(n / 4); 16], b""))),
        ("fields of an entry of a map", Box::new(|n| with_messages(&[fields_and_entry(n * 4 / 7)], b""))),
        ("extensions and ranges", Box::new(|n| with_messages(&[ranges(n)], &many(7, n)))),
        ("nested extensions and ranges", Box::new(|n| with_messages(&[ranges(n), named(&many(6, n))], b""))),
    ];
    for (what, set) in sets {
        assert!(check(&set(side * 9 / 10)).is_ok(), "{what}: {:?}", check(&set(side * 9 / 10)));
        let refused = check(&set(side * 11 / 10));
        assert!(matches!(refused, Err(SchemaError::TooManySteps { .. })), "{what}: {refused:?}");
        // Files share the budget.
        let (first, second) = (set(side * 8 / 10), set(side * 8 / 10));
        let refused = check(&[first, second].concat());
        assert!(matches!(refused, Err(SchemaError::TooManySteps { .. })), "{what} in two files: {refused:?}");
    }
}

/// Each service that is read keeps the name of its file.
#[test]
fn names_of_files_are_limited_and_counted_for_each_service() {
    let services = |name: &str, count: usize| {
        let services = field(6, &named(b"")).repeat(count);
        field(1, &[field(1, name.as_bytes()), services].concat())
    };
    let most = limits::DESCRIPTOR_NAME_BYTES;
    assert!(check(&services(&"f".repeat(most), 1_000)).is_ok());
    let refused = check(&services(&"f".repeat(most + 1), 1));
    assert!(matches!(refused, Err(SchemaError::LongName { kind: "file", .. })), "{refused:?}");
    assert!(check(&services("f", 60_000)).is_ok());
    let refused = check(&services(&"f".repeat(most), 60_000));
    assert!(matches!(refused, Err(SchemaError::TooMuchMemory { .. })), "{refused:?}");
}

#[test]
fn full_names_are_counted_and_limited() {
    let most = limits::DESCRIPTOR_NAME_BYTES;
    assert!(check(&file("t.proto", &"p".repeat(most - 2), &named(b""))).is_ok());
    let refused = check(&file("t.proto", &"p".repeat(most - 1), &named(b""))).unwrap_err();
    assert_eq!(refused.to_string(), "t.proto: the full name of a message has 2049 bytes; allowed are 2048");
    // The name comes after what it is the scope of, and only the last one of two counts.
    let inner = [field(3, &named(b"")), field(1, b"b"), field(1, "m".repeat(most - 3).as_bytes())].concat();
    assert!(check(&file("t.proto", "", &inner)).is_ok());
    assert!(matches!(check(&file("t.proto", "p", &inner)), Err(SchemaError::LongName { found: 2049, .. })));

    let many = |package: &str| {
        let messages = field(4, &named(b"")).repeat(60_000);
        field(1, &[field(1, b"t.proto"), field(2, package.as_bytes()), messages].concat())
    };
    assert!(check(&many("p")).is_ok());
    let refused = check(&many(&"p".repeat(1_500)));
    assert!(matches!(refused, Err(SchemaError::TooMuchMemory { .. })), "{refused:?}");
}

#[test]
fn files_without_a_name_are_refused() {
    assert!(matches!(check(&bomb(&[], b"\x0a\x00")), Err(SchemaError::NamelessFile)));
}

#[test]
fn names_that_no_compiler_writes_are_refused() {
    let refused = |set: &[u8]| check(set).unwrap_err().to_string();
    for name in ["a\u{1b}[2J", "a b", "1a", "a-b", "a.b", "ä", ""] {
        for (number, kind) in [(4, "message"), (5, "enum"), (6, "service"), (7, "extension")] {
            let set = field(1, &[field(1, b"t.proto"), field(number, &field(1, name.as_bytes()))].concat());
            let start = format!("t.proto: `{}` is not a valid name of a {kind}: ", shown(name));
            assert!(refused(&set).starts_with(&start), "{}", refused(&set));
        }
        for (outer, inner, kind) in [
            (4, 2, "field"),
            (4, 3, "message"),
            (4, 4, "enum"),
            (4, 8, "oneof"),
            (5, 2, "enum value"),
            (6, 2, "method"),
        ] {
            let element = named(&field(inner, &field(1, name.as_bytes())));
            let set = field(1, &[field(1, b"t.proto"), field(outer, &element)].concat());
            assert!(refused(&set).contains(&format!("is not a valid name of a {kind}: ")), "{}", refused(&set));
        }
    }
    for package in ["a..b", ".a", "a.", "a b", "a.1"] {
        let told = refused(&file("t.proto", package, &named(b"")));
        assert!(told.contains("is not a valid name of a package"), "{told}");
    }
    let told = refused(&file("a\u{1b}[2J.proto", "", &named(b"")));
    assert_eq!(told, "the descriptors contain a file whose name has control characters: a\\u{1b}[2J.proto");
}

#[test]
fn real_sets_fit() {
    let names = r#"syntax = "proto3"; package a_1.B2; message _M { optional int32 _x1 = 1; map<string, _M> m = 2;
        oneof o { string s = 3; } enum E { Z = 0; } reserved "old"; }"#;
    check(&compile(&[("my files/ä.proto", names)])).unwrap();

    let own = FileDescriptorSet::decode(weft_contracts::FILE_DESCRIPTOR_SET).unwrap();
    let copies = 13 * 512 * 1024 / own.encoded_len();
    let of_copy = |number: usize| own.file.iter().map(move |file| renamed(file, number));
    let large = FileDescriptorSet { file: (0..copies).flat_map(of_copy).collect() };
    assert!(large.encoded_len() > 13 * 500 * 1024, "most of what a set may have in bytes");
    check(&large.encode_to_vec()).unwrap();

    // Thousands of messages, each with a few messages, maps and more fields than most have.
    let part = |name: String| prost_types::DescriptorProto { name: Some(name), ..Default::default() };
    let message = |number: usize| prost_types::DescriptorProto {
        nested_type: (0..10).map(|number| part(format!("N{number}"))).collect(),
        field: (0..50)
            .map(|number| prost_types::FieldDescriptorProto { name: Some(format!("f{number}")), ..Default::default() })
            .collect(),
        ..part(format!("M{number}"))
    };
    let name = Some("t.proto".to_owned());
    let file = FileDescriptorProto { name, message_type: (0..3_000).map(message).collect(), ..Default::default() };
    check(&FileDescriptorSet { file: vec![file] }.encode_to_vec()).unwrap();
}

/// The same file in another package.
fn renamed(file: &FileDescriptorProto, number: usize) -> FileDescriptorProto {
    let package = Some(format!("p{number}.{}", file.package()));
    FileDescriptorProto { name: Some(format!("{number}/{}", file.name())), package, ..file.clone() }
}
