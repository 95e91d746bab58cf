//! Medians.

use serde::Serialize;

/// Median and extremes over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without values.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[upper] } else { (values[upper - 1] + values[upper]) / 2.0 };
        Some(Self { median, min, max })
    }

    /// The median.
    pub(crate) fn cell(&self, digits: usize) -> String {
        format!("{:.digits$}", self.median)
    }

    /// The median with the extremes.
    pub(crate) fn wide_cell(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

/// Ratios of values of the same round.
pub(crate) fn ratios<T>(these: &[T], those: &[T], of: impl Fn(&T) -> f64) -> Option<Spread> {
    Spread::of(std::iter::zip(these, those).map(|(this, that)| of(this) / of(that)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(Spread::of([3.0, 1.0].into_iter()), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([5.0, 1.0, 2.0].into_iter()).map(|spread| spread.median), Some(2.0));
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn a_cell_has_the_extremes_when_asked() {
        let spread = Spread { median: 1.25, min: 1.0, max: 2.0 };
        assert_eq!((spread.cell(1).as_str(), spread.wide_cell(2).as_str()), ("1.2", "1.25 (1.00-2.00)"));
    }
}
