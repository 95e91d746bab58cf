//! The fallback that a MethodPolicy gives: another service, or none. Another method, or a fixed answer, has to fit the types of a
//! contract, so only the contract can say it.

use weft_contracts::weft::policy::v1::{self as wire, fallback};

use crate::{
    config::{Node, Reader},
    names::{DEFAULT_NAMESPACE, ServiceName, shown},
    policy::origin::Origin,
};

const KEYS: &[&str] = &["service", "method", "answer"];
const SERVICE: &str = "NAME, or NAME.NAMESPACE, of another service";
const OF_CONTRACT: &str = "found here; allowed: only in the contract, which has the types; here: `service`";

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FallbackTo {
    Nothing,
    /// As it is written, `NAME` or `NAME.NAMESPACE`.
    Service(String),
}

impl FallbackTo {
    /// Reads it. Only that of a method `may_be_nothing`: a table without keys.
    pub(super) fn read(reader: &mut Reader<'_>, field: &str, node: &Node, may_be_nothing: bool) -> Option<Self> {
        let table = reader.table(field, node, KEYS)?;
        reader.must_have_values(&table, KEYS);
        if table.entries().is_empty() {
            if may_be_nothing {
                return Some(Self::Nothing);
            }
            reader.problem(node.line, field, format!("without a value; allowed: `service`, {SERVICE}"));
        }
        for key in &KEYS[1..] {
            if let Some(node) = table.get(key) {
                reader.problem(node.line, &table.path(key), OF_CONTRACT);
            }
        }
        let service = reader.parsed(&table, "service", SERVICE, |text| {
            let is_service = ServiceName::parse_in(text, DEFAULT_NAMESPACE).is_ok();
            match is_service {
                true => Ok(text.to_owned()),
                false => Err(format!("found the text {:?}; allowed: {SERVICE}", shown(text))),
            }
        });
        service.map(Self::Service)
    }

    /// Whether it leads to this service, of whose policy it is.
    pub(super) fn leads_to(&self, service: &ServiceName) -> bool {
        match self {
            Self::Nothing => false,
            Self::Service(to) => ServiceName::parse_in(to, service.namespace()).is_ok_and(|to| to == *service),
        }
    }

    pub(super) fn to_wire(&self, origin: Origin) -> wire::Fallback {
        let to = match self {
            Self::Nothing => None,
            Self::Service(service) => {
                Some(fallback::To::Elsewhere(fallback::Elsewhere { service: service.clone(), method: String::new() }))
            }
        };
        wire::Fallback { to, origin: wire::Origin::from(origin).into() }
    }
}
