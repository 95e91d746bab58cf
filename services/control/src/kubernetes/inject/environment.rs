//! The variables by which the application's containers find the mesh.

use serde_json::{Value, json};
use weft_mesh::names::port;

use super::{
    super::names::{CONTAINER, CONTAINER_REDIRECT},
    patch::Patch,
    pod::{Error, Pod},
};

/// Adds them to each container that does not have them: before its own, so that these may refer to them (`$(NAME)`).
pub(super) fn add(pod: &Pod<'_>, patch: &mut Patch) -> Result<(), Error> {
    for container in pod.all_containers()? {
        if container.has_name(CONTAINER) || container.has_name(CONTAINER_REDIRECT) {
            continue;
        }
        let own = container.env()?;
        let is_own = |name: &Value| own.iter().any(|variable| variable.get("name") == Some(name));
        let missing = variables().into_iter().filter(|variable| !is_own(&variable["name"])).collect();
        let (list, index) = container.place();
        patch.prepend(pod.value(), &["spec", list, &index.to_string(), "env"], missing);
    }
    Ok(())
}

fn variables() -> [Value; 2] {
    [
        json!({ "name": "WEFT_OUTBOUND", "value": format!("http://127.0.0.1:{}", port::OUTBOUND) }),
        json!({ "name": "WEFT_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } }),
    ]
}
