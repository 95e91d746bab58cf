//! Which known name someone who asked for an unknown one most likely meant.
//!
//! A name is compared with its neighbours in the order of names, and with no more than [`limits::HINT_CANDIDATES`]:
//! whoever asks chooses what is compared, and names are compared under the directory's lock.

use weft_mesh::{
    limits,
    names::{ServiceName, closest, closest_of_sorted},
};

use super::registry::Registry;
use crate::claims::{is_address, visibility::Sight};

const EACH_WAY: usize = limits::HINT_CANDIDATES / 2;

/// The service whose name is the closest, of those that are seen.
pub(crate) fn service(asked: &str, registry: &Registry, sight: &Sight) -> Option<String> {
    let names = registry.service_names().filter(|service| sight.sees(service));
    let names: Vec<&str> = names.map(ServiceName::as_str).collect();
    closest_of_sorted(asked, &names, |name| name).map(str::to_owned)
}

/// The contract whose name is the closest, of those whose service is seen.
pub(crate) fn contract(asked: &str, registry: &Registry, sight: &Sight) -> Option<String> {
    let claims = registry.claims();
    let names = contracts_among(claims.names_before(asked)).chain(contracts_among(claims.names_from(asked)));
    let is_seen = |name: &&str| claims.owner(name).is_some_and(|owner| sight.sees(owner));
    closest(asked, names.filter(is_seen)).map(str::to_owned)
}

/// Of names that are near, the contracts; many addresses between them do not make the way longer.
fn contracts_among<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    names.take(limits::HINT_CANDIDATES).filter(|name| !is_address(name)).take(EACH_WAY)
}

/// The symbol that is the closest, of these that come first.
pub(crate) fn symbol<'a>(asked: &str, symbols: impl Iterator<Item = &'a str>) -> Option<String> {
    closest(asked, symbols).map(str::to_owned)
}
