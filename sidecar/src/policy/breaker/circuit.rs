//! The state of a breaker in one word, so that it changes in one step.

/// See the module. Times are in milliseconds since the sidecar's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Circuit {
    Closed,
    /// Refuses calls until then.
    Open {
        until_ms: u64,
    },
    /// The next call becomes a probe.
    HalfOpen,
    /// A probe has run since then.
    Probing {
        since_ms: u64,
    },
}

impl Circuit {
    /// The kind is in the two lowest bits, the time above.
    pub(super) fn word(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { until_ms } => until_ms << 2 | 1,
            Self::HalfOpen => 2,
            Self::Probing { since_ms } => since_ms << 2 | 3,
        }
    }

    pub(super) fn of(word: u64) -> Self {
        match word & 3 {
            0 => Self::Closed,
            1 => Self::Open { until_ms: word >> 2 },
            2 => Self::HalfOpen,
            _ => Self::Probing { since_ms: word >> 2 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_the_state_that_it_was_made_of() {
        for ms in [0, 1, 3, 4, 5_000, u64::MAX >> 2] {
            for circuit in
                [Circuit::Closed, Circuit::Open { until_ms: ms }, Circuit::HalfOpen, Circuit::Probing { since_ms: ms }]
            {
                assert_eq!(Circuit::of(circuit.word()), circuit);
            }
        }
    }
}
