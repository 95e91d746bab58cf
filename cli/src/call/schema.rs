//! Converts messages of the mesh's contracts between JSON and their bytes on the wire.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use weft_mesh::schema::{self, Schema};

use crate::terminal;

/// The messages of a descriptor set. Cheap to clone.
#[derive(Clone)]
pub(super) struct Messages(Arc<dyn Schema>);

impl Messages {
    pub(super) fn new(descriptor_set: &[u8]) -> anyhow::Result<Self> {
        Ok(Self(schema::from_descriptor_set(descriptor_set).context("the contracts of the mesh can't be used")?))
    }

    pub(super) fn to_binary(&self, message: &str, json: &str) -> anyhow::Result<Bytes> {
        Ok(self.0.json_to_binary(message, json)?.into())
    }

    /// A message as JSON that a terminal can be given.
    pub(super) fn to_json(&self, message: &str, bytes: &[u8], is_pretty: bool) -> anyhow::Result<String> {
        let json = self.0.binary_to_json(message, bytes)?;
        if !is_pretty {
            return Ok(terminal::json(&json));
        }
        let value: serde_json::Value = serde_json::from_str(&json)?;
        Ok(terminal::json(&serde_json::to_string_pretty(&value)?))
    }
}
