//! From the options in descriptors to a policy. The files of the policies read and check their own options.

use std::{collections::BTreeSet, time::Duration};

use super::{
    ContractPolicy, MethodPolicy, ServicePolicy, access, breaker, error::PolicyError, fallback, hedge, hedge::Hedge,
    origin::Sourced, timeout,
};
use crate::{
    names,
    schema::{self, Method, Schema, Service},
};

impl ServicePolicy {
    /// Compiles a service's policy from a serialized `google.protobuf.FileDescriptorSet`: see [`Self::from_schema`].
    pub fn from_descriptors(descriptor_set: &[u8], contracts: Option<&[String]>) -> Result<Self, PolicyError> {
        Self::from_schema(&*schema::from_descriptor_set(descriptor_set)?, contracts)
    }

    /// Compiles the policy of a service that implements the protobuf services with these full names. `None` means all
    /// that the schema defines, except those of `google.*`, `grpc.*` and `weft.*`, which come with imports.
    pub fn from_schema(schema: &dyn Schema, contracts: Option<&[String]>) -> Result<Self, PolicyError> {
        let services = implemented(schema, contracts)?;
        let mut fallbacks = fallback::Compiler::new(schema, &services);
        let contracts = services.iter().map(|service| compile_contract(service, &mut fallbacks));
        let contracts = contracts.collect::<Result<_, _>>()?;
        Ok(Self { contracts, breaker: breaker::of(&services)?, method_policy: String::new() })
    }
}

fn implemented<'s>(schema: &'s dyn Schema, contracts: Option<&[String]>) -> Result<Vec<&'s Service>, PolicyError> {
    let Some(contracts) = contracts else {
        return Ok(schema.services().iter().filter(|service| !is_foreign(&service.name)).collect());
    };
    let unique: BTreeSet<&String> = contracts.iter().collect();
    let find = |contract: &String| {
        schema.service(contract).ok_or_else(|| PolicyError::UnknownContract {
            contract: contract.clone(),
            closest: names::closest_of_sorted(contract, schema.services(), |service| &service.name).map(str::to_owned),
        })
    };
    unique.into_iter().map(find).collect()
}

/// Whether a protobuf service comes from an imported library and is not a user's own.
fn is_foreign(service: &str) -> bool {
    ["google.", "grpc.", "weft."].iter().any(|package| service.starts_with(package))
}

fn compile_contract<'s>(
    service: &'s Service,
    fallbacks: &mut fallback::Compiler<'s>,
) -> Result<ContractPolicy, PolicyError> {
    let timeout = timeout::of_service(service)?;
    let hedge = hedge::of_service(service)?;
    let access = access::of_service(service)?;
    fallback::check_of_service(service)?;
    let compile = |method: &'s Method| -> Result<_, PolicyError> {
        let fallback = fallbacks.of_method(service, method)?;
        let refuses_fallback = fallback::is_refused(method);
        let access = access::of_method(service, method, access.as_ref())?;
        Ok(MethodPolicy { fallback, refuses_fallback, access, ..compile_method(service, method, timeout, hedge)? })
    };
    let methods = service.methods.iter().map(compile).collect::<Result<_, _>>()?;
    Ok(ContractPolicy { name: service.name.clone(), methods, stands_in_for: fallback::stands_in_for(service)? })
}

fn compile_method(
    service: &Service,
    method: &Method,
    service_timeout: Option<Sourced<Duration>>,
    service_hedge: Option<Sourced<Hedge>>,
) -> Result<MethodPolicy, PolicyError> {
    Ok(MethodPolicy {
        name: method.name.clone(),
        client_streaming: method.client_streaming,
        server_streaming: method.server_streaming,
        timeout: timeout::of_method(service, method, service_timeout)?,
        idempotency: method.idempotency,
        fallback: None,
        refuses_fallback: false,
        hedge: hedge::of_method(service, method, service_hedge)?,
        access: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::testing::{policy, service},
        schema::testing::compile,
    };

    #[test]
    fn without_options_everything_is_default() {
        let policy = policy(r#"syntax = "proto3"; message M {} service S { rpc Do(M) returns (M); }"#).unwrap();
        assert_eq!(policy.breaker, Sourced::default());
        assert_eq!(policy.method("S", "Do").unwrap().timeout, None);
    }

    #[test]
    fn the_shops_contracts_compile_and_wefts_own_are_left_out() {
        let users = Some(&["shop.users.v1.Users".to_owned()][..]);
        let policy = ServicePolicy::from_descriptors(weft_contracts::FILE_DESCRIPTOR_SET, users).unwrap();
        assert_eq!(policy.method("shop.users.v1.Users", "Create").unwrap().timeout.unwrap().value.as_secs(), 2);
        assert_eq!(policy.breaker.value.open_for, Duration::from_secs(2));

        let all = ServicePolicy::from_descriptors(weft_contracts::FILE_DESCRIPTOR_SET, None).unwrap();
        assert!(all.contracts.iter().all(|contract| contract.name.starts_with("shop.")), "{:?}", all.contracts);
    }

    #[test]
    fn an_unknown_contract_is_refused_and_the_closest_is_named() {
        let asked = Some(&["shop.users.v1.User".to_owned()][..]);
        let error = ServicePolicy::from_descriptors(weft_contracts::FILE_DESCRIPTOR_SET, asked).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the descriptors define no service `shop.users.v1.User`; did you mean `shop.users.v1.Users`?"
        );
    }

    #[test]
    fn files_of_editions_are_read() {
        use buffa::Message as _;
        use buffa_descriptor::generated::descriptor::{Edition, FileDescriptorSet};

        // The tests' compiler cannot read editions, so the compiled file is turned into one.
        let source =
            service("rpc Do(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 3 } }; }");
        let mut set = FileDescriptorSet::decode_from_slice(&compile(&[("t.proto", &source)])).unwrap();
        let file = set.file.iter_mut().find(|file| file.name.as_deref() == Some("t.proto")).unwrap();
        file.syntax = Some("editions".to_owned());
        file.edition = Some(Edition::EDITION_2023);
        let policy = ServicePolicy::from_descriptors(&set.encode_to_vec(), None).unwrap();
        assert_eq!(policy.method("t.S", "Do").unwrap().timeout.unwrap().value, Duration::from_secs(3));
    }
}
