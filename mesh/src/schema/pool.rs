//! [`Schema`] with the `buffa-descriptor` library.

use std::io;
use std::sync::Arc;

use buffa_descriptor::{
    DescriptorPool, MessageIndex, MethodDescriptor, ServiceDescriptor,
    generated::descriptor::method_options::IdempotencyLevel, reflect::DynamicMessage,
};
use weft_contracts::weft::options::v1::{MethodOptions, ServiceOptions};

use super::{Idempotency, Method, Schema, SchemaError, Service, files::malformed, json};
use crate::{limits, names};

/// The field number of Weft's options in `google.protobuf.ServiceOptions` and in `google.protobuf.MethodOptions`.
const WEFT_OPTION: u32 = 50901;

pub(super) struct PoolSchema {
    pool: Arc<DescriptorPool>,
    services: Vec<Service>,
}

impl PoolSchema {
    pub(super) fn new(descriptor_set: &[u8]) -> Result<Self, SchemaError> {
        let limits = buffa::DecodeOptions::new().with_element_memory_limit(limits::DESCRIPTOR_MEMORY_BYTES);
        let pool = DescriptorPool::decode_with_options(descriptor_set, &limits).map_err(malformed)?;
        let mut services =
            pool.services().iter().map(|service| read_service(&pool, service)).collect::<Result<Vec<_>, _>>()?;
        services.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { pool: Arc::new(pool), services })
    }

    fn message(&self, name: &str) -> Result<MessageIndex, SchemaError> {
        self.pool.message_index(name).ok_or_else(|| {
            let known = self.pool.messages().iter().map(|message| message.full_name());
            SchemaError::UnknownMessage {
                message: name.to_owned(),
                closest: names::closest(name, known).map(str::to_owned),
            }
        })
    }
}

impl Schema for PoolSchema {
    fn services(&self) -> &[Service] {
        &self.services
    }

    fn has_message(&self, name: &str) -> bool {
        self.pool.message_index(name).is_some()
    }

    fn widest(&self) -> usize {
        let fields = self.pool.messages().iter().map(|message| message.fields().len());
        let values = self.pool.enums().iter().map(|of| of.values().len());
        fields.chain(values).max().unwrap_or(0)
    }

    fn json_to_binary(&self, message: &str, json: &str) -> Result<Vec<u8>, SchemaError> {
        let parsed = json::parse(&self.pool, self.message(message)?, json)?;
        parsed
            .try_encode_to_vec()
            .map_err(|error| SchemaError::Binary { message: message.to_owned(), reason: error.to_string() })
    }

    fn binary_to_json_up_to(&self, message: &str, binary: &[u8], most: usize) -> Result<String, SchemaError> {
        let malformed = |reason| SchemaError::Binary { message: message.to_owned(), reason };
        let decoded = DynamicMessage::decode(Arc::clone(&self.pool), self.message(message)?, binary)
            .map_err(|error| malformed(error.to_string()))?;
        let mut text = Bounded { text: Vec::new(), most };
        serde_json::to_writer(&mut text, &decoded).map_err(|error| malformed(error.to_string()))?;
        String::from_utf8(text.text).map_err(|error| malformed(error.to_string()))
    }

    fn any_to_json(&self, any: &prost_types::Any) -> Result<String, SchemaError> {
        // `type.googleapis.com/a.b.C`: the part before the last slash only says where a definition may be found.
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        Ok(json::with_type(&any.type_url, name, &self.binary_to_json(name, &any.value)?))
    }
}

/// A text that takes no more than so many bytes.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.text.len() {
            return Err(io::Error::other(format!("its JSON has more than {} bytes", self.most)));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_service(pool: &DescriptorPool, service: &ServiceDescriptor) -> Result<Service, SchemaError> {
    let name = service.full_name().to_owned();
    let file = pool
        .file_containing_symbol(&name)
        .and_then(|file| file.name.clone())
        .ok_or_else(|| malformed(format_args!("service {name} is in no file")))?;
    let options = match service.options() {
        None => None,
        Some(options) => Place { pool, file: &file, element: format!("service {name}") }
            .read::<ServiceCarrier>("google.protobuf.ServiceOptions", "weft.options.v1.service", options)?
            .and_then(|carrier| carrier.weft),
    };
    let methods = service.methods().iter().map(|method| read_method(pool, &file, &name, method));
    Ok(Service { methods: methods.collect::<Result<_, _>>()?, name, file, options })
}

fn read_method(
    pool: &DescriptorPool,
    file: &str,
    service: &str,
    method: &MethodDescriptor,
) -> Result<Method, SchemaError> {
    let name = method.name().to_owned();
    let idempotency = match method.options().and_then(|options| options.idempotency_level) {
        Some(IdempotencyLevel::IDEMPOTENT) => Idempotency::Idempotent,
        Some(IdempotencyLevel::NO_SIDE_EFFECTS) => Idempotency::NoSideEffects,
        Some(IdempotencyLevel::IDEMPOTENCY_UNKNOWN) | None => Idempotency::Unknown,
    };
    let options = match method.options() {
        None => None,
        Some(options) => Place { pool, file, element: format!("method {service}/{name}") }
            .read::<MethodCarrier>("google.protobuf.MethodOptions", "weft.options.v1.method", options)?
            .and_then(|carrier| carrier.weft),
    };
    Ok(Method {
        name,
        input: pool.message(method.input()).full_name().to_owned(),
        output: pool.message(method.output()).full_name().to_owned(),
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
        idempotency,
        options,
    })
}

/// `google.protobuf.ServiceOptions` with the one field that is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct ServiceCarrier {
    #[prost(message, optional, tag = "50901")]
    weft: Option<ServiceOptions>,
}

/// `google.protobuf.MethodOptions` with the one field that is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct MethodCarrier {
    #[prost(message, optional, tag = "50901")]
    weft: Option<MethodOptions>,
}

/// The place of an option.
struct Place<'a> {
    pool: &'a DescriptorPool,
    file: &'a str,
    element: String,
}

impl Place<'_> {
    /// Reads Weft's option from an element's options through their serialized form: an extension in one library is a
    /// field in the other.
    fn read<C: prost::Message + Default + PartialEq>(
        self,
        extendee: &str,
        extension: &str,
        options: &impl buffa::Message,
    ) -> Result<Option<C>, SchemaError> {
        let file = || self.file.to_owned();
        let encoded = options.try_encode_to_vec().map_err(malformed)?;
        let decoded = C::decode(encoded.as_slice());
        if decoded.as_ref().is_ok_and(|carrier| *carrier == C::default()) {
            return Ok(None);
        }
        let extendee = self.pool.message_index(extendee);
        match extendee.and_then(|extendee| self.pool.extension_for(extendee, WEFT_OPTION)) {
            // Anyone may use the numbers from 50000 on: this is another option with the same number.
            Some(found) if found.full_name() != extension => Ok(None),
            Some(_) => decoded.map(Some).map_err(|error| SchemaError::MalformedOption {
                file: file(),
                element: self.element,
                reason: error.to_string(),
            }),
            None => Err(SchemaError::UndefinedOption { file: file(), element: self.element, number: WEFT_OPTION }),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::schema::{files, from_descriptor_set, from_files, testing::compile};

    const SOURCE: &str = r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
        message In {} message Out {}
        service S {
            option (weft.options.v1.service) = { timeout: { seconds: 5 } };
            rpc Get(In) returns (stream Out) {
                option idempotency_level = NO_SIDE_EFFECTS;
                option (weft.options.v1.method) = { timeout: { seconds: 1 } };
            }
            rpc Put(stream In) returns (Out);
        }"#;

    #[test]
    fn services_and_methods_are_listed_with_their_options() {
        let schema = from_descriptor_set(&compile(&[("t.proto", SOURCE)])).unwrap();
        assert_eq!(schema.services().len(), 1);
        let service = schema.service("t.S").unwrap();
        assert_eq!((service.name.as_str(), service.file.as_str()), ("t.S", "t.proto"));
        assert_eq!(service.options.as_ref().unwrap().timeout.unwrap().seconds, 5);
        let get = schema.method("t.S", "Get").unwrap();
        assert_eq!((get.input.as_str(), get.output.as_str()), ("t.In", "t.Out"));
        assert_eq!((get.client_streaming, get.server_streaming), (false, true));
        assert_eq!(get.idempotency, Idempotency::NoSideEffects);
        assert_eq!(get.options.as_ref().unwrap().timeout.unwrap().seconds, 1);
        let put = schema.method("t.S", "Put").unwrap();
        assert_eq!((put.client_streaming, put.server_streaming), (true, false));
        assert_eq!((put.idempotency, &put.options), (Idempotency::Unknown, &None));
        assert!(schema.service("t.T").is_none() && schema.method("t.S", "Nope").is_none());
        assert!(schema.has_message("t.In") && !schema.has_message("t.S"));
    }

    #[test]
    fn all_contracts_of_weft_are_read() {
        let schema = from_descriptor_set(weft_contracts::FILE_DESCRIPTOR_SET).unwrap();
        let list = schema.method("shop.users.v1.Users", "List").unwrap();
        assert!(list.idempotency.is_safe_to_repeat());
        assert_eq!(schema.service("shop.users.v1.Users").unwrap().file, "shop/users/v1/users.proto");
    }

    #[test]
    fn another_partys_option_with_the_same_number_is_ignored() {
        let source = r#"syntax = "proto3"; package t; import "google/protobuf/descriptor.proto";
            extend google.protobuf.MethodOptions { string acme = 50901; }
            message M {}
            service S { rpc Do(M) returns (M) { option (t.acme) = "not a message"; } }"#;
        let schema = from_descriptor_set(&compile(&[("t.proto", source)])).unwrap();
        assert_eq!(schema.method("t.S", "Do").unwrap().options, None);
    }

    #[test]
    fn options_without_their_definition_are_an_error_with_a_remedy() {
        let all = files::split(&compile(&[("t.proto", SOURCE)])).unwrap();
        let only = all.into_iter().filter(|file| file.windows(7).any(|part| part == b"t.proto"));
        let only = only.filter(|file| !file.windows(7).any(|part| part == b"Breaker"));
        let error = from_files(only).err().unwrap().to_string();
        assert!(error.starts_with("t.proto: service t.S has an option with the number 50901"), "{error}");
        assert!(error.contains("--include_imports"), "{error}");
    }

    #[test]
    fn sets_are_merged_when_they_agree() {
        let a =
            compile(&[("a.proto", r#"syntax = "proto3"; package a; import "c.proto"; message A { c.C c = 1; }"#), C]);
        let b =
            compile(&[("b.proto", r#"syntax = "proto3"; package b; import "c.proto"; message B { c.C c = 1; }"#), C]);
        let both = || files::split(&a).unwrap().into_iter().chain(files::split(&b).unwrap());
        let schema = from_files(both()).unwrap();
        assert!(["a.A", "b.B", "c.C"].iter().all(|name| schema.has_message(name)));

        let other = compile(&[("c.proto", r#"syntax = "proto3"; package c; message C { string other = 1; }"#)]);
        let error = from_files(both().chain(files::split(&other).unwrap())).err().unwrap().to_string();
        assert_eq!(error, "the descriptors contain two different files named c.proto");
    }

    const C: (&str, &str) = ("c.proto", r#"syntax = "proto3"; package c; message C { string it = 1; }"#);

    #[test]
    fn too_much_and_too_little_are_refused() {
        let large = vec![0; limits::DESCRIPTOR_SET_BYTES + 1];
        assert!(matches!(from_descriptor_set(&large), Err(SchemaError::TooLarge { .. })));
        let halves = [vec![0; limits::DESCRIPTOR_SET_BYTES / 2 + 1], vec![0; limits::DESCRIPTOR_SET_BYTES / 2 + 1]];
        assert!(from_files(halves.map(Bytes::from)).is_err());
        assert!(matches!(from_files([Bytes::new()]), Err(SchemaError::NamelessFile)));
        assert!(from_descriptor_set(&[]).unwrap().services().is_empty());
        assert!(from_descriptor_set(b"{\"json\": true}").is_err());
    }

    #[test]
    fn truncated_sets_cause_only_errors() {
        let set = compile(&[("t.proto", SOURCE)]);
        for length in 0..set.len() {
            let _ = from_descriptor_set(&set[..length]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn damaged_sets_cause_only_errors(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            // Small, so that most of the damage hits data that is read.
            static SET: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
                compile(&[("t.proto", r#"syntax = "proto3"; package t;
                    message M { map<string, M> m = 1; oneof o { string s = 2; E e = 3; } optional int32 i = 4;
                        enum E { Z = 0; A = 1; } message N { repeated E es = 1; } reserved 7 to 9; }
                    service S { rpc Do(M) returns (M.N); }"#)])
            });
            let mut set = SET.clone();
            for (at, byte) in damage {
                let at = at.index(set.len());
                set[at] = byte;
            }
            if let Ok(schema) = from_descriptor_set(&set) {
                let _ = schema.binary_to_json("t.M", b"\x0a\x05\x0a\x01a\x12\x00\x12\x01s\x20\x07");
                let _ = schema.json_to_binary("t.M", r#"{"m": {"a": {"i": 1}}, "s": "x"}"#);
            }
        }
    }
}
