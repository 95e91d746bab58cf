//! How those who do not trust one another share what there is little of.

/// Whether one who has `own` of something may have another, where all together have `all` of `limit`: as many as all leave
/// free.
///
/// One alone comes to half of all, of two that take what they get each comes to a third, of nine to a tenth. So there is
/// always room for one more, and neither a number of peers has to be guessed nor what is idle be kept for those who do not
/// come (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998).
#[inline]
pub fn may_have_more(own: usize, all: usize, limit: usize) -> bool {
    own < limit.saturating_sub(all)
}

/// The same for a part of one, such as the replicas of a service on one host, where the whole one has `own`. A part alone
/// comes to a third of all, two of the same to four ninths, and any number of them to half: what one part takes is not the
/// room of the next, and what all take together is not that of others.
pub fn part_may_have_more(of_part: usize, own: usize, all: usize, limit: usize) -> bool {
    may_have_more(of_part.saturating_add(own), all, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many each has in the end, of some who take what they get one after the other.
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
    fn neither_another_nor_another_part_is_kept_out() {
        assert_eq!(take_all(9_000, 1, 1), [[3_000]]);
        let taken = take_all(10_000, 4, 5);
        assert!(taken.iter().flatten().all(|part| *part > 0), "{taken:?}");
        let most = taken.iter().map(|whole| whole.iter().sum::<usize>()).max();
        assert!(most <= Some(5_000), "no whole one has more than half: {taken:?}");
    }

    #[test]
    fn nobody_has_more_than_there_is() {
        assert!(may_have_more(0, 9, 10) && !may_have_more(0, 10, 10) && !may_have_more(1, 9, 10));
        assert!(!may_have_more(0, 11, 10) && !part_may_have_more(usize::MAX, usize::MAX, 0, usize::MAX));
    }
}
