//! A pod's annotations.

use serde_json::json;
use weft_mesh::names::closest;

use super::{
    super::names::{LABEL_INJECT, annotation},
    pod::{Error, Pod},
};

/// The value of an annotation, as `read` reads it.
pub(super) fn parsed<T>(
    pod: &Pod<'_>,
    key: &str,
    allowed: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(text) = pod.annotation(key)? else { return Ok(None) };
    match read(text) {
        Some(value) => Ok(Some(value)),
        None => Err(Error::found(field(key), &json!(text), allowed)),
    }
}

/// The path of an annotation.
pub(super) fn field(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

/// A misspelt annotation must not be ignored.
pub(super) fn only_known(pod: &Pod<'_>) -> Result<(), Error> {
    let known = |key: &str| annotation::SETTINGS.contains(&key) || key == annotation::INJECTED;
    let Some(key) = pod.annotations().find(|key| key.starts_with("weft.dev/") && !known(key)) else { return Ok(()) };
    let hint = match closest(key, annotation::SETTINGS.iter().copied()) {
        _ if key == LABEL_INJECT => " (it is a label)".to_owned(),
        Some(near) => format!(" (did you mean `{near}`?)"),
        None => String::new(),
    };
    let allowed = annotation::SETTINGS.join(", ");
    Err(Error::new(field(key), format!("unknown annotation; allowed: {allowed}{hint}")))
}
