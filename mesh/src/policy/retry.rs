//! Whether a call may be repeated: a method's `idempotency_level`, and `weft.policy.v1.Idempotency`.

use weft_contracts::weft::policy::v1 as wire;

use crate::schema::Idempotency;

impl From<Idempotency> for wire::Idempotency {
    fn from(idempotency: Idempotency) -> Self {
        match idempotency {
            Idempotency::Unknown => Self::Unknown,
            Idempotency::Idempotent => Self::Idempotent,
            Idempotency::NoSideEffects => Self::NoSideEffects,
        }
    }
}

impl From<wire::Idempotency> for Idempotency {
    fn from(idempotency: wire::Idempotency) -> Self {
        match idempotency {
            wire::Idempotency::Idempotent => Self::Idempotent,
            wire::Idempotency::NoSideEffects => Self::NoSideEffects,
            // Also a level that only a later version knows: it is always right not to repeat a call.
            wire::Idempotency::Unknown | wire::Idempotency::Unspecified => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{policy, service};

    #[test]
    fn the_level_of_a_method_is_read() {
        let policy = policy(&service(
            "rpc Plain(M) returns (M);
             rpc Read(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
             rpc Watch(M) returns (stream M) { option idempotency_level = IDEMPOTENT; }",
        ))
        .unwrap();
        let idempotency = |method: &str| policy.method("t.S", method).unwrap().idempotency;
        assert_eq!(idempotency("Plain"), Idempotency::Unknown);
        assert_eq!(idempotency("Read"), Idempotency::NoSideEffects);
        assert_eq!(idempotency("Watch"), Idempotency::Idempotent);
    }

    #[test]
    fn a_level_survives_the_wire() {
        for level in [Idempotency::Unknown, Idempotency::Idempotent, Idempotency::NoSideEffects] {
            assert_eq!(Idempotency::from(wire::Idempotency::from(level)), level);
        }
        assert_eq!(Idempotency::from(wire::Idempotency::Unspecified), Idempotency::Unknown);
    }
}
