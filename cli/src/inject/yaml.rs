//! Kubernetes objects in YAML, read as kubectl reads them: by YAML 1.1, in which `on` is true and `0644` is 420.

use anyhow::bail;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// From 1, without those that are empty.
    pub(super) number: usize,
    /// Its first line, from 1.
    pub(super) line: u64,
    pub(super) value: Value,
}

/// Reads all documents of a text that are not empty. JSON is YAML.
pub(super) fn read(file: &str, text: &str) -> anyhow::Result<Vec<Document>> {
    let options = serde_saphyr::options! {
        // Files of custom resource definitions are large.
        budget: None,
        duplicate_keys: DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> = match serde_saphyr::from_multiple_with_options(text, options) {
        Ok(documents) => documents,
        Err(error) => match error.location() {
            Some(at) => {
                // The message starts with the line.
                let place = format!(" at line {}, column {}", at.line(), at.column());
                bail!("{file}:{}: not YAML: {}", at.line().max(1), error.to_string().replace(&place, ""))
            }
            None => bail!("{file}: not YAML: {error}"),
        },
    };
    let documents = documents.into_iter().filter(|document| !document.value.is_null()).zip(1..);
    let documents = documents.map(|(document, number)| Document {
        number,
        line: document.referenced.line().max(1),
        value: document.value,
    });
    Ok(documents.collect())
}

/// Writes the documents. Texts that a reader could take for something else are quoted.
pub(super) fn write(documents: &[Document]) -> anyhow::Result<String> {
    let values: Vec<&Value> = documents.iter().map(|document| &document.value).collect();
    // Long lines stay as they are; texts of several lines are written as such.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    Ok(serde_saphyr::to_string_multiple_with_options(&values, options)?)
}
