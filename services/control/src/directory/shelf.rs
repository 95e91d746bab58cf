//! Descriptor sets that members sent, and the policies compiled from them.
//!
//! Reading and compiling a set takes long. [`make`] and [`compile`] do not need the shelf, so they can run on another
//! thread.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest as _, Sha256};
use weft_contracts::weft::policy::v1::ServicePolicy;
use weft_mesh::{
    limits,
    names::{ServiceName, shown_up_to},
    policy,
};

use super::{
    descriptors::DescriptorSet,
    registry::{Contracts, Digest, SessionOver},
};

/// Why descriptors were refused. The text is for their sidecar.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorsRefused {
    #[error("no descriptors were announced")]
    NotAnnounced,
    #[error("these are not the descriptors that were announced: their SHA-256 is another")]
    OtherDigest,
    #[error("the control plane holds {} bytes of descriptors, which is the limit", limits::DESCRIPTORS_HELD_BYTES)]
    NoRoom,
    #[error(
        "the control plane holds {} bytes of descriptors of this service, which is the limit: it is for the versions that \
         run",
        limits::DESCRIPTORS_PER_SERVICE_BYTES
    )]
    NoRoomForService,
    #[error(
        "the control plane holds {} policies of this service, which is the limit: it is for the versions that run",
        limits::POLICIES_PER_SERVICE
    )]
    TooManyPolicies,
    #[error(
        "the descriptors would take {0} bytes of memory with the index of their names; allowed: {limit}",
        limit = limits::DESCRIPTORS_PER_SERVICE_BYTES
    )]
    TooLarge(usize),
    #[error("the policy in the descriptors has {0} bytes; allowed: {limit}", limit = limits::POLICY_BYTES)]
    PolicyTooLarge(usize),
    #[error("{0}")]
    Unusable(String),
    #[error("they could not be read")]
    Unreadable,
    /// The same descriptors were refused before, for this reason.
    #[error("{0}")]
    Known(Arc<str>),
    #[error(transparent)]
    SessionOver(#[from] SessionOver),
}

impl DescriptorsRefused {
    /// Whether the same descriptors will always be refused for the same contracts.
    pub(crate) fn is_for_good(&self) -> bool {
        matches!(self, Self::TooLarge(_) | Self::PolicyTooLarge(_) | Self::Unusable(_))
    }
}

/// A set, and its policy for the contracts of a service.
pub(crate) type Made = (Arc<DescriptorSet>, Arc<ServicePolicy>);

/// The longest reason of a refusal, in characters.
pub(crate) const REFUSAL_CHARS: usize = 1_000;

/// Descriptors that were refused, for one set of contracts.
#[derive(Debug)]
struct Refused {
    digest: Digest,
    /// The SHA-256 of the contracts, whose names may be long.
    contracts: Digest,
    why: Arc<str>,
}

/// The policy in a service's descriptors, for one set of contracts.
#[derive(Debug)]
struct Compiled {
    digest: Digest,
    contracts: Contracts,
    policy: Arc<ServicePolicy>,
    /// Of the policy, serialized.
    bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    sets: BTreeMap<Digest, Arc<DescriptorSet>>,
    /// The replicas of a service share them.
    policies: HashMap<ServiceName, Vec<Compiled>>,
    /// The oldest first.
    refusals: HashMap<ServiceName, VecDeque<Refused>>,
}

impl Shelf {
    pub(crate) fn set(&self, digest: &Digest) -> Option<&Arc<DescriptorSet>> {
        self.sets.get(digest)
    }

    /// The policy that was compiled before for these contracts, which must be sorted.
    pub(crate) fn policy<'a, I: Iterator<Item = &'a str>>(
        &self,
        service: &ServiceName,
        digest: &Digest,
        contracts: impl Fn() -> I,
    ) -> Option<Arc<ServicePolicy>> {
        let same =
            |made: &&Compiled| made.digest == *digest && made.contracts.iter().map(|name| &**name).eq(contracts());
        self.policies.get(service)?.iter().find(same).map(|made| Arc::clone(&made.policy))
    }

    /// Why descriptors were refused for these contracts, which must be sorted, if they were.
    pub(crate) fn refusal<'a, I: Iterator<Item = &'a str>>(
        &self,
        service: &ServiceName,
        digest: &Digest,
        contracts: impl Fn() -> I,
    ) -> Option<Arc<str>> {
        let mut of_digest = self.refusals.get(service)?.iter().filter(|refused| refused.digest == *digest).peekable();
        of_digest.peek()?;
        let contracts = digest_of(contracts());
        of_digest.find(|refused| refused.contracts == contracts).map(|refused| Arc::clone(&refused.why))
    }

    /// Remembers that descriptors were refused, so that they are not read again and again.
    pub(crate) fn refuse(
        &mut self,
        service: &ServiceName,
        digest: Digest,
        contracts: &[Arc<str>],
        why: &DescriptorsRefused,
    ) {
        let names = || contracts.iter().map(|name| &**name);
        if self.refusal(service, &digest, names).is_some() {
            return;
        }
        let refusals = self.refusals.entry(service.clone()).or_default();
        if refusals.len() >= limits::REFUSALS_PER_SERVICE {
            refusals.pop_front();
        }
        // The reason may quote what was sent.
        let why = shown_up_to(&why.to_string(), REFUSAL_CHARS).into();
        refusals.push_back(Refused { digest, contracts: digest_of(names()), why });
    }

    /// Whether there is room for a set with its policy, of this many bytes together, for a service. Before the set is read,
    /// its serialized size is the least that it can have.
    pub(crate) fn check_room(
        &mut self,
        service: &ServiceName,
        digest: &Digest,
        bytes: usize,
    ) -> Result<(), DescriptorsRefused> {
        let made = self.policies.entry(service.clone()).or_default();
        // Policies that no member has any more make room.
        made.retain(is_used);
        if made.len() >= limits::POLICIES_PER_SERVICE {
            return Err(DescriptorsRefused::TooManyPolicies);
        }
        let digests: BTreeSet<&Digest> =
            made.iter().map(|made| &made.digest).filter(|other| *other != digest).collect();
        let of_sets: usize =
            digests.iter().filter_map(|digest| self.sets.get(*digest)).map(|set| set.memory_bytes()).sum();
        let of_service = of_sets + made.iter().map(|made| made.bytes).sum::<usize>();
        if of_service + bytes > limits::DESCRIPTORS_PER_SERVICE_BYTES {
            return Err(DescriptorsRefused::NoRoomForService);
        }
        let of_sets: usize = self.sets.values().map(|set| set.memory_bytes()).sum();
        let held = of_sets + self.policies.values().flatten().map(|made| made.bytes).sum::<usize>();
        match self.sets.contains_key(digest) || held + bytes <= limits::DESCRIPTORS_HELD_BYTES {
            true => Ok(()),
            false => Err(DescriptorsRefused::NoRoom),
        }
    }

    /// Keeps a set and its policy for a service.
    pub(crate) fn put(
        &mut self,
        service: &ServiceName,
        digest: Digest,
        contracts: Contracts,
        set: Arc<DescriptorSet>,
        policy: Arc<ServicePolicy>,
    ) -> Result<(), DescriptorsRefused> {
        // Other sets may have been added while this one was compiled.
        let bytes = policy.encoded_len();
        self.check_room(service, &digest, set.memory_bytes() + bytes)?;
        self.sets.entry(digest).or_insert(set);
        self.policies.entry(service.clone()).or_default().push(Compiled { digest, contracts, policy, bytes });
        Ok(())
    }

    /// Drops sets and policies that no member has any more, and refusals of services that are no longer known.
    pub(crate) fn tidy(&mut self, in_use: &HashSet<Digest>, is_known: impl Fn(&ServiceName) -> bool) {
        self.refusals.retain(|service, _| is_known(service));
        self.sets.retain(|digest, _| in_use.contains(digest));
        self.policies.retain(|_, made| {
            made.retain(is_used);
            !made.is_empty()
        });
    }
}

/// The SHA-256 of names, each followed by a zero byte.
fn digest_of<'a>(names: impl Iterator<Item = &'a str>) -> Digest {
    let mut hash = Sha256::new();
    for name in names {
        hash.update(name);
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Whether the registry uses it as well.
fn is_used(made: &Compiled) -> bool {
    Arc::strong_count(&made.policy) > 1
}

/// Reads a set that a member sent, and compiles its policy for the contracts of a service. May take long.
pub(crate) fn make(digest: Digest, bytes: Bytes, contracts: &[Arc<str>]) -> Result<Made, DescriptorsRefused> {
    if Sha256::digest(&bytes)[..] != digest {
        return Err(DescriptorsRefused::OtherDigest);
    }
    let set = DescriptorSet::parse(bytes).map_err(|e| DescriptorsRefused::Unusable(e.to_string()))?;
    if set.memory_bytes() > limits::DESCRIPTORS_PER_SERVICE_BYTES {
        return Err(DescriptorsRefused::TooLarge(set.memory_bytes()));
    }
    let policy = compile(&set, contracts)?;
    Ok((Arc::new(set), policy))
}

/// Compiles the policy in a set for the contracts of a service. May take long.
pub(crate) fn compile(set: &DescriptorSet, contracts: &[Arc<str>]) -> Result<Arc<ServicePolicy>, DescriptorsRefused> {
    let names: Vec<String> = contracts.iter().map(|name| name.to_string()).collect();
    let compiled = policy::ServicePolicy::from_descriptors(set.bytes(), Some(&names))
        .map_err(|e| DescriptorsRefused::Unusable(e.to_string()))?;
    let policy = ServicePolicy::from(&compiled);
    match policy.encoded_len() {
        0..=limits::POLICY_BYTES => Ok(Arc::new(policy)),
        bytes => Err(DescriptorsRefused::PolicyTooLarge(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{
        DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
        SourceCodeInfo, source_code_info::Location,
    };
    use weft_contracts::weft::policy::v1::Contract;

    use super::*;

    fn users() -> ServiceName {
        ServiceName::parse("users.shop").unwrap()
    }

    /// A set with one contract, `t.S`, with this many methods.
    fn set_of(methods: usize, padding: usize) -> Bytes {
        let method = |number: usize| MethodDescriptorProto {
            name: Some(format!("M{number}{}", "x".repeat(padding))),
            input_type: Some(".t.E".into()),
            output_type: Some(".t.E".into()),
            ..MethodDescriptorProto::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("S".into()),
            method: (0..methods).map(method).collect(),
            options: None,
        };
        let file = FileDescriptorProto {
            name: Some("t.proto".into()),
            package: Some("t".into()),
            syntax: Some("proto3".into()),
            message_type: vec![DescriptorProto { name: Some("E".into()), ..DescriptorProto::default() }],
            service: vec![service],
            ..FileDescriptorProto::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec().into()
    }

    /// A set with so many bytes of comments.
    fn commented(bytes: usize) -> Bytes {
        let location = Location { leading_comments: Some("x".repeat(bytes)), ..Location::default() };
        let file = FileDescriptorProto {
            name: Some("t.proto".into()),
            source_code_info: Some(SourceCodeInfo { location: vec![location] }),
            ..FileDescriptorProto::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec().into()
    }

    fn digest(bytes: &Bytes) -> Digest {
        Sha256::digest(bytes).into()
    }

    fn contracts(names: &[String]) -> Contracts {
        names.iter().map(|name| Arc::from(name.as_str())).collect()
    }

    #[test]
    fn the_policies_of_one_service_are_limited_and_unused_ones_make_room() {
        let mut shelf = Shelf::default();
        let bytes = set_of(1, 0);
        let of = |number: usize| contracts(&[format!("t.Other{number}"), "t.S".into()]);
        let put = |shelf: &mut Shelf, number: usize| {
            let set = Arc::new(DescriptorSet::parse(bytes.clone()).unwrap());
            let policy = Arc::new(ServicePolicy::default());
            shelf.put(&users(), digest(&bytes), of(number), set, Arc::clone(&policy)).map(|()| policy)
        };
        let known = |shelf: &Shelf, number: usize| {
            let names = of(number);
            shelf.policy(&users(), &digest(&bytes), || names.iter().map(|name| &**name))
        };
        let mut held: Vec<_> = (0..limits::POLICIES_PER_SERVICE).map(|n| put(&mut shelf, n).unwrap()).collect();
        assert!(matches!(put(&mut shelf, 99), Err(DescriptorsRefused::TooManyPolicies)));
        held.pop();
        let again = put(&mut shelf, 99).unwrap();
        assert!(Arc::ptr_eq(&known(&shelf, 99).unwrap(), &again));
        drop((held, again));
        shelf.tidy(&HashSet::from([digest(&bytes)]), |_| true);
        assert!(shelf.policies.is_empty());
        assert!(shelf.set(&digest(&bytes)).is_some(), "a member still has the set");
    }

    #[test]
    fn one_service_cannot_take_all_the_room() {
        let mut shelf = Shelf::default();
        let mut held = Vec::new();
        let large = 7 * 1024 * 1024;
        let refused = (0..10u8).find_map(|number| {
            let policy = Arc::new(ServicePolicy::default());
            let set = Arc::new(DescriptorSet::parse(commented(large + usize::from(number))).unwrap());
            held.push(Arc::clone(&policy));
            shelf.put(&users(), [number; 32], contracts(&["t.S".into()]), set, policy).err()
        });
        assert!(matches!(refused, Some(DescriptorsRefused::NoRoomForService)), "{refused:?}");
        assert_eq!(shelf.sets.len(), limits::DESCRIPTORS_PER_SERVICE_BYTES / large);
        let other = ServiceName::parse("orders.shop").unwrap();
        assert!(shelf.check_room(&other, &[77; 32], large).is_ok());
    }

    /// A set with so many messages in a package with a long name.
    fn in_long_package(messages: usize) -> Bytes {
        let message =
            |number: usize| DescriptorProto { name: Some(format!("M{number}")), ..DescriptorProto::default() };
        let file = FileDescriptorProto {
            name: Some("t.proto".into()),
            package: Some("p".repeat(1_900)),
            message_type: (0..messages).map(message).collect(),
            ..FileDescriptorProto::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec().into()
    }

    /// Such names are kept for each symbol, so otherwise a service takes a hundred times what it was allowed.
    #[test]
    fn what_is_counted_of_a_set_is_what_it_takes_in_memory() {
        let bytes = in_long_package(5_000);
        let set = DescriptorSet::parse(bytes.clone()).unwrap();
        let names: usize = set.symbols().map(str::len).sum();
        assert!(bytes.len() < 100 * 1024 && names > 9_000_000, "{} bytes have {names} of names", bytes.len());
        assert!(set.memory_bytes() > bytes.len() + names);
        let mut shelf = Shelf::default();
        let set = Arc::new(set);
        let mut held = Vec::new();
        let refused = (0..10u8).find_map(|number| {
            let policy = Arc::new(ServicePolicy::default());
            held.push(Arc::clone(&policy));
            shelf.put(&users(), [number; 32], contracts(&["t.S".into()]), Arc::clone(&set), policy).err()
        });
        assert!(matches!(refused, Some(DescriptorsRefused::NoRoomForService)), "{refused:?}");
        assert_eq!(shelf.sets.len(), limits::DESCRIPTORS_PER_SERVICE_BYTES / set.memory_bytes());

        let larger = in_long_package(18_000);
        let refused = make(digest(&larger), larger, &contracts(&[])).unwrap_err();
        assert!(matches!(refused, DescriptorsRefused::TooLarge(_)) && refused.is_for_good(), "{refused}");
        let shop = DescriptorSet::parse(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET)).unwrap();
        assert!(shop.memory_bytes() < 3 * shop.bytes().len(), "{} of {}", shop.memory_bytes(), shop.bytes().len());
    }

    #[test]
    fn the_policies_of_one_service_cannot_take_all_the_room_either() {
        let mut shelf = Shelf::default();
        let bytes = set_of(1, 0);
        let set = Arc::new(DescriptorSet::parse(bytes.clone()).unwrap());
        let large = 4 * 1024 * 1024;
        let mut held = Vec::new();
        let refused = (0..limits::POLICIES_PER_SERVICE).find_map(|number| {
            let contract = Contract { name: "x".repeat(large), ..Contract::default() };
            let policy = Arc::new(ServicePolicy { contracts: vec![contract], ..ServicePolicy::default() });
            held.push(Arc::clone(&policy));
            let of = contracts(&[format!("t.Other{number}")]);
            shelf.put(&users(), digest(&bytes), of, Arc::clone(&set), policy).err()
        });
        assert!(matches!(refused, Some(DescriptorsRefused::NoRoomForService)), "{refused:?}");
        assert_eq!(shelf.policies[&users()].len(), limits::DESCRIPTORS_PER_SERVICE_BYTES / large - 1);
    }

    #[test]
    fn remembered_refusals_of_a_service_are_limited() {
        let mut shelf = Shelf::default();
        let why = DescriptorsRefused::Unusable("x".repeat(100_000));
        let of = |number: usize| contracts(&[format!("t.Other{number}"), "t.S".into()]);
        let known = |shelf: &Shelf, digest: Digest, number: usize| {
            let names = of(number);
            shelf.refusal(&users(), &digest, || names.iter().map(|name| &**name))
        };
        for number in 0..2 * limits::REFUSALS_PER_SERVICE {
            for _ in 0..2 {
                shelf.refuse(&users(), [1; 32], &of(number), &why);
            }
            let told = known(&shelf, [1; 32], number).unwrap();
            assert!(told.chars().count() <= REFUSAL_CHARS + 1, "the quoted text is cut");
            assert!(known(&shelf, [1; 32], number + 1).is_none() && known(&shelf, [2; 32], number).is_none());
        }
        assert_eq!(shelf.refusals[&users()].len(), limits::REFUSALS_PER_SERVICE);
        assert!(known(&shelf, [1; 32], limits::REFUSALS_PER_SERVICE - 1).is_none(), "the oldest made room");
        shelf.tidy(&HashSet::new(), |_| false);
        assert!(shelf.refusals.is_empty());
    }

    #[test]
    fn a_policy_that_does_not_fit_a_snapshot_is_refused() {
        let small = set_of(10, 0);
        assert_eq!(make(digest(&small), small.clone(), &contracts(&["t.S".into()])).unwrap().1.contracts.len(), 1);
        assert!(matches!(make([0; 32], small, &contracts(&[])), Err(DescriptorsRefused::OtherDigest)));
        let large = set_of(12_000, 400);
        let refused = make(digest(&large), large, &contracts(&["t.S".into()])).unwrap_err();
        assert!(
            matches!(refused, DescriptorsRefused::PolicyTooLarge(bytes) if bytes > limits::POLICY_BYTES),
            "{refused}"
        );
    }
}
