//! Messages in protobuf's JSON mapping.

use std::sync::Arc;

use buffa_descriptor::{DescriptorPool, DynamicMessageSeed, MessageIndex, reflect::DynamicMessage};
use serde::de::DeserializeSeed;

use super::SchemaError;
use crate::names;

/// The messages of `google.protobuf` whose JSON is not an object of their fields.
const SPECIAL: [&str; 15] = [
    "Any",
    "BoolValue",
    "BytesValue",
    "DoubleValue",
    "Duration",
    "FieldMask",
    "FloatValue",
    "Int32Value",
    "Int64Value",
    "ListValue",
    "StringValue",
    "Struct",
    "Timestamp",
    "UInt32Value",
    "UInt64Value",
];

pub(super) fn parse(
    pool: &Arc<DescriptorPool>,
    index: MessageIndex,
    json: &str,
) -> Result<DynamicMessage, SchemaError> {
    let message = pool.message(index).full_name();
    let mut text = serde_json::Deserializer::from_str(json);
    let mut track = serde_path_to_error::Track::new();
    let seed = DynamicMessageSeed::new(Arc::clone(pool), index);
    let parsed = seed.deserialize(serde_path_to_error::Deserializer::new(&mut text, &mut track)).map_err(|error| {
        let path = track.path();
        SchemaError::Json {
            message: message.to_owned(),
            field: path.iter().next().map(|_| path.to_string()),
            reason: with_suggestion(pool, error.to_string()),
        }
    })?;
    text.end().map_err(|error| SchemaError::Json {
        message: message.to_owned(),
        field: None,
        reason: error.to_string(),
    })?;
    Ok(parsed)
}

/// Adds the closest field to an error about an unknown one. The library reports the field only in text; a text of
/// another form is not changed.
fn with_suggestion(pool: &DescriptorPool, mut reason: String) -> String {
    let closest = || {
        let (asked, rest) = reason.strip_prefix("unknown field \"")?.split_once("\" on message ")?;
        let fields = pool.message_by_name(rest.split(' ').next()?)?.fields();
        names::closest(asked, fields.iter().map(|field| field.json_name()))
    };
    if let Some(name) = closest() {
        reason += &format!("; did you mean {name:?}?");
    }
    reason
}

/// The JSON of an `Any`, from the JSON of its content.
pub(super) fn with_type(type_url: &str, name: &str, json: &str) -> String {
    let type_url = serde_json::Value::from(type_url);
    let is_special =
        name.strip_prefix("google.protobuf.").is_some_and(|name| name == "Value" || SPECIAL.contains(&name));
    match json.strip_prefix('{') {
        Some("}") if !is_special => format!(r#"{{"@type":{type_url}}}"#),
        Some(fields) if !is_special => format!(r#"{{"@type":{type_url},{fields}"#),
        _ => format!(r#"{{"@type":{type_url},"value":{json}}}"#),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::schema::{Schema, from_descriptor_set, testing::compile};

    const SOURCE: &str = r#"syntax = "proto3"; package t;
        import "google/protobuf/any.proto"; import "google/protobuf/duration.proto";
        import "google/protobuf/timestamp.proto"; import "google/protobuf/wrappers.proto";
        message Order {
            string order_id = 1; repeated Line lines = 2; map<string, int64> counts = 3; bytes raw = 4;
            google.protobuf.Timestamp placed_at = 5; google.protobuf.Duration took = 6; Kind kind = 7;
            optional int32 maybe = 8; google.protobuf.Int32Value wrapped = 9; google.protobuf.Any any = 10;
            double ratio = 11; oneof way { string by_air = 12; bool by_sea = 13; } uint64 large = 14;
        }
        message Line { int32 quantity = 1; }
        enum Kind { KIND_UNSPECIFIED = 0; KIND_FAST = 1; }"#;

    fn schema() -> Arc<dyn Schema> {
        from_descriptor_set(&compile(&[("t.proto", SOURCE)])).unwrap()
    }

    fn round_trip(schema: &dyn Schema, json: &str) -> serde_json::Value {
        let binary = schema.json_to_binary("t.Order", json).unwrap();
        serde_json::from_str(&schema.binary_to_json("t.Order", &binary).unwrap()).unwrap()
    }

    #[test]
    fn every_kind_of_field_survives_the_round_trip() {
        let schema = schema();
        let json = r#"{"orderId":"o-1","lines":[{"quantity":2},{}],"counts":{"a":"9007199254740993"},"raw":"AP8=",
            "placedAt":"2026-01-02T03:04:05.600Z","took":"1.500s","kind":"KIND_FAST","maybe":0,"wrapped":7,
            "any":{"@type":"type.googleapis.com/t.Line","quantity":3},"ratio":"NaN","byAir":"x",
            "large":"18446744073709551615"}"#;
        assert_eq!(round_trip(&*schema, json), serde_json::from_str::<serde_json::Value>(json).unwrap());
        // What people write by hand: field names as in the file, numbers without quotes, an enum by its number, null.
        let by_hand = r#"{"order_id":"o-1","large":5,"kind":1,"raw":null,"took":"1s"}"#;
        let expected = serde_json::json!({"orderId":"o-1","large":"5","kind":"KIND_FAST","took":"1s"});
        assert_eq!(round_trip(&*schema, by_hand), expected);
        assert_eq!(schema.binary_to_json("t.Order", b"").unwrap(), "{}");
    }

    #[test]
    fn errors_say_which_field_is_wrong() {
        let schema = schema();
        let error = |json| schema.json_to_binary("t.Order", json).unwrap_err().to_string();
        for (json, expected) in [
            (r#"{"lines":[{},{"quantity":"many"}]}"#, "this is not JSON of `t.Order`: lines[1].quantity: "),
            (r#"{"oderId":"x"}"#, r#"unknown field "oderId" on message t.Order"#),
            (r#"{"oderId":"x"}"#, r#"did you mean "orderId"?"#),
            (r#"{"lines":[{"quantty":1}]}"#, r#"did you mean "quantity"?"#),
            (r#"{"kind":"KIND_SLOW"}"#, r#"kind: unknown enum value "KIND_SLOW""#),
            (r#"{"byAir":"x","bySea":true}"#, "more than one member of oneof"),
            (r#"{"took":"soon"}"#, "took: "),
            (r#"{"orderId":"x"} more"#, "trailing characters"),
            ("[1]", "a JSON object for message t.Order"),
            ("", "EOF"),
        ] {
            let error = error(json);
            assert!(error.contains(expected), "{json}: {error}");
        }
        let unknown = schema.json_to_binary("t.Ordre", "{}").unwrap_err().to_string();
        assert_eq!(unknown, "the descriptors define no message `t.Ordre`; did you mean `t.Order`?");
        let cut = schema.binary_to_json("t.Order", b"\x0a\x05ab").unwrap_err().to_string();
        assert!(cut.starts_with("these bytes are not a `t.Order`: "), "{cut}");
    }

    #[test]
    fn endless_nesting_is_an_error() {
        let source = r#"syntax = "proto3"; package t; message N { N n = 1; }"#;
        let schema = from_descriptor_set(&compile(&[("t.proto", source)])).unwrap();
        let deep = format!("{}{{}}{}", r#"{"n":"#.repeat(100_000), "}".repeat(100_000));
        assert!(schema.json_to_binary("t.N", &deep).is_err());
        let mut binary = Vec::new();
        for _ in 0..2_000 {
            let mut outer = vec![0x0a];
            prost::encode_length_delimiter(binary.len(), &mut outer).unwrap();
            outer.append(&mut binary);
            binary = outer;
        }
        assert!(schema.binary_to_json("t.N", &binary).is_err());
    }

    #[test]
    fn an_any_shows_its_content() {
        let schema = schema();
        let show = |url: &str, value: &[u8]| {
            schema.any_to_json(&prost_types::Any { type_url: url.to_owned(), value: value.to_vec() })
        };
        let line = "type.googleapis.com/t.Line";
        assert_eq!(show(line, b"\x08\x03").unwrap(), r#"{"@type":"type.googleapis.com/t.Line","quantity":3}"#);
        assert_eq!(show(line, b"").unwrap(), r#"{"@type":"type.googleapis.com/t.Line"}"#);
        let duration = show("/google.protobuf.Duration", b"\x08\x03").unwrap();
        assert_eq!(duration, r#"{"@type":"/google.protobuf.Duration","value":"3s"}"#);
        assert!(show("type.googleapis.com/t.Unknown", b"").is_err());
        assert!(show("", b"").is_err());
    }
}
