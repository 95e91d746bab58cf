//! The known name that is closest to an unknown one: "did you mean ...?"
//!
//! A name is compared with its neighbours in sorted order, and with at most [`limits::HINT_CANDIDATES`] of them: the
//! caller chooses the name, and the comparison runs under the directory's lock.

use weft_mesh::{
    limits,
    names::{ServiceName, closest, closest_of_sorted},
};

use super::registry::Registry;
use crate::claims::{is_address, visibility::Sight};

const EACH_WAY: usize = limits::HINT_CANDIDATES / 2;

/// The closest name among the services in sight.
pub(crate) fn service(asked: &str, registry: &Registry, sight: &Sight) -> Option<String> {
    let names = registry.service_names().filter(|service| sight.sees(service));
    let names: Vec<&str> = names.map(ServiceName::as_str).collect();
    closest_of_sorted(asked, &names, |name| name).map(str::to_owned)
}

/// The closest name among the contracts whose service is in sight.
pub(crate) fn contract(asked: &str, registry: &Registry, sight: &Sight) -> Option<String> {
    let claims = registry.claims();
    let names = contracts_among(claims.names_before(asked)).chain(contracts_among(claims.names_from(asked)));
    let is_seen = |name: &&str| claims.owner(name).is_some_and(|owner| sight.sees(owner));
    closest(asked, names.filter(is_seen)).map(str::to_owned)
}

/// The contracts among neighbouring names. Addresses between them count, too, so that many of them do not make the
/// search longer.
fn contracts_among<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    names.take(limits::HINT_CANDIDATES).filter(|name| !is_address(name)).take(EACH_WAY)
}

/// The closest of these symbols; only the first ones are compared.
pub(crate) fn symbol<'a>(asked: &str, symbols: impl Iterator<Item = &'a str>) -> Option<String> {
    closest(asked, symbols).map(str::to_owned)
}
