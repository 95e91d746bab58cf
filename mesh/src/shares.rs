//! How peers that do not trust one another share a scarce resource.

/// Whether a peer that has `own` units may take one more, when all together have `all` of `limit`: a peer may have as
/// many as all together leave free.
///
/// A single peer gets half of the limit; if two take all they can, each gets a third, and of nine each gets a tenth. So
/// there is always room for one more peer. The number of peers need not be known, and no part is reserved for peers
/// that may never come (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches",
/// 1998).
#[inline]
pub fn may_have_more(own: usize, all: usize, limit: usize) -> bool {
    own < limit.saturating_sub(all)
}

/// The same for a part of a peer, such as the replicas of a service on one host, when the whole peer has `own`. A
/// single part gets a third of the limit, two parts of the same peer get four ninths together, and any number of them
/// at most half. So a part always leaves room for other parts, and a peer for other peers.
pub fn part_may_have_more(of_part: usize, own: usize, all: usize, limit: usize) -> bool {
    may_have_more(of_part.saturating_add(own), all, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many units each part has in the end, if one after the other takes all it can.
    fn take_all(limit: usize, wholes: usize, parts: usize) -> Vec<Vec<usize>> {
        let mut taken = vec![vec![0; parts]; wholes];
        for whole in 0..wholes {
            for part in 0..parts {
                let all = |taken: &[Vec<usize>]| taken.iter().flatten().sum();
                let own = |taken: &[Vec<usize>]| taken[whole].iter().sum();
                while part_may_have_more(taken[whole][part], own(&taken), all(&taken), limit) {
                    taken[whole][part] += 1;
                }
            }
        }
        taken
    }

    #[test]
    fn no_peer_and_no_part_is_kept_out() {
        assert_eq!(take_all(9_000, 1, 1), [[3_000]]);
        let taken = take_all(10_000, 4, 5);
        assert!(taken.iter().flatten().all(|part| *part > 0), "{taken:?}");
        let most = taken.iter().map(|whole| whole.iter().sum::<usize>()).max();
        assert!(most <= Some(5_000), "no peer has more than half: {taken:?}");
    }

    #[test]
    fn the_limit_is_never_exceeded() {
        assert!(may_have_more(0, 9, 10) && !may_have_more(0, 10, 10) && !may_have_more(1, 9, 10));
        assert!(!may_have_more(0, 11, 10) && !part_may_have_more(usize::MAX, usize::MAX, 0, usize::MAX));
    }
}
