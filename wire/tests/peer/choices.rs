//! The source of random decisions.

/// A source of decisions: a seed in tests, the fuzzer's bytes in a fuzz target.
pub struct Choices<'a> {
    from: From<'a>,
}

enum From<'a> {
    Seed(fastrand::Rng),
    Bytes(&'a [u8]),
}

impl<'a> Choices<'a> {
    pub fn seeded(seed: u64) -> Self {
        Self { from: From::Seed(fastrand::Rng::with_seed(seed)) }
    }

    pub fn bytes(bytes: &'a [u8]) -> Self {
        Self { from: From::Bytes(bytes) }
    }

    /// A number below `bound`; 0 once the fuzzer's bytes are used up.
    pub fn below(&mut self, bound: usize) -> usize {
        match &mut self.from {
            From::Seed(rng) => rng.usize(..bound.max(1)),
            From::Bytes(bytes) => {
                let mut value = 0;
                let mut covered = 1;
                while covered < bound {
                    let Some((first, rest)) = bytes.split_first() else { return 0 };
                    value = value * 256 + *first as usize;
                    covered *= 256;
                    *bytes = rest;
                }
                value % bound.max(1)
            }
        }
    }

    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True one time in `times`; never once the fuzzer's bytes are used up.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Whether the fuzzer's bytes are used up.
    pub fn is_over(&self) -> bool {
        matches!(self.from, From::Bytes([]))
    }
}
