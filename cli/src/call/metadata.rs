//! Headers from the command line.

use anyhow::{Context, bail};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataKey, MetadataMap, MetadataValue};
use weft_mesh::names::header;

/// With or without `=` at the end, as gRPC allows both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Parses headers given as `KEY: VALUE`.
pub(super) fn parse(headers: &[String], service: Option<&str>) -> anyhow::Result<MetadataMap> {
    let mut metadata = MetadataMap::new();
    for text in headers {
        let Some((key, value)) = text.split_once(':') else {
            bail!("the header {text:?} has no colon; allowed: 'KEY: VALUE'");
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        let is_reserved =
            key.starts_with("grpc-") || ["content-type", "te", "host", "user-agent"].contains(&key.as_str());
        if is_reserved {
            let hint = if key == "grpc-timeout" { "; use --timeout" } else { "" };
            bail!("the header {key:?} is set by gRPC itself{hint}");
        }
        if key.ends_with("-bin") {
            let bytes = BASE64.decode(value).with_context(|| format!("the value of {key:?} is not base64"))?;
            let key: BinaryMetadataKey = key.parse().with_context(|| format!("{key:?} is not a header name"))?;
            metadata.append_bin(key, MetadataValue::from_bytes(&bytes));
        } else {
            let value: AsciiMetadataValue =
                value.parse().with_context(|| format!("{value:?} is not a header value"))?;
            let key: AsciiMetadataKey = key.parse().with_context(|| format!("{key:?} is not a header name"))?;
            metadata.append(key, value);
        }
    }
    if let Some(service) = service {
        metadata
            .insert(header::SERVICE, service.parse().with_context(|| format!("{service:?} is not a service name"))?);
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[&str]) -> anyhow::Result<MetadataMap> {
        parse(&headers.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>(), Some("users"))
    }

    #[test]
    fn headers_are_text_or_binary_by_their_name() {
        let metadata = of(&["X-Tenant: a:b ", "key-bin: AAE=", "key-bin:AAE"]).unwrap();
        assert_eq!(metadata.get("x-tenant").unwrap(), "a:b");
        assert_eq!(metadata.get("x-weft-service").unwrap(), "users");
        let binary: Vec<_> = metadata.get_all_bin("key-bin").iter().map(|v| v.to_bytes().unwrap()).collect();
        assert_eq!(binary, [&[0, 1][..], &[0, 1][..]]);
    }

    #[test]
    fn an_invalid_header_is_refused_with_the_reason() {
        for (header, told) in [
            ("x", "no colon"),
            ("grpc-timeout: 1S", "use --timeout"),
            ("key-bin: ä", "not base64"),
            ("a b: c", "not a header name"),
        ] {
            let error = format!("{:#}", of(&[header]).unwrap_err());
            assert!(error.contains(told), "{header}: {error}");
        }
    }
}
