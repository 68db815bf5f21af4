//! The few statistics the figures are made of.
//!
//! Within a round: a low percentile of batch averages, which is the cost of the path without the moments in which
//! something else had the CPU. Between rounds: medians, and the median of the ratios *within each round*, because
//! both halves of such a ratio saw the same machine.

/// The `q` quantile (0 to 1) of `values`, linear between the two nearest ranks; `None` when there are none.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let rank = q.clamp(0.0, 1.0) * last as f64;
    let low = rank.floor();
    let (below, above) = (sorted.get(low as usize)?, sorted.get(rank.ceil() as usize)?);
    Some(below + (above - below) * (rank - low))
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The median of `value / limit`, taken round by round. Rounds in which either is missing do not count.
pub fn median_ratio(values: &[Option<f64>], limits: &[Option<f64>]) -> Option<f64> {
    median(&ratios(values, limits).into_iter().flatten().collect::<Vec<_>>())
}

/// `value / limit` for each round; `None` where one of the two was not measured.
pub fn ratios(values: &[Option<f64>], limits: &[Option<f64>]) -> Vec<Option<f64>> {
    values.iter().zip(limits).map(|(value, limit)| Some((*value)? / (*limit)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_of_nothing_is_nothing() {
        assert_eq!(quantile(&[], 0.1), None);
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn quantile_does_not_depend_on_the_order_of_the_values() {
        let values = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 10.0, 0.0];
        assert_eq!(quantile(&values, 0.1), Some(1.0));
        assert_eq!(quantile(&values, 0.0), Some(0.0));
        assert_eq!(quantile(&values, 1.0), Some(10.0));
    }

    #[test]
    fn quantile_between_two_ranks_is_interpolated() {
        assert_eq!(quantile(&[10.0, 20.0], 0.1), Some(11.0));
        assert_eq!(median(&[1.0, 2.0, 3.0, 10.0]), Some(2.5));
    }

    #[test]
    fn the_low_percentile_ignores_batches_that_were_interrupted() {
        let mut batches = vec![100.0; 80];
        batches.extend([5_000.0; 20]);
        assert_eq!(quantile(&batches, 0.1), Some(100.0));
    }

    #[test]
    fn median_of_ratios_pairs_values_of_the_same_round() {
        // The machine was twice as slow in the second round: both sides doubled, the ratio did not.
        let (weft, limit) = ([Some(11.0), Some(22.0), Some(11.0)], [Some(10.0), Some(20.0), Some(10.0)]);
        let ratio = median_ratio(&weft, &limit).unwrap();
        assert!((ratio - 1.1).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn a_round_without_its_limit_does_not_count() {
        assert_eq!(ratios(&[Some(2.0), Some(9.0)], &[Some(1.0), None]), [Some(2.0), None]);
        assert_eq!(median_ratio(&[Some(2.0), Some(9.0)], &[Some(1.0), None]), Some(2.0));
        assert_eq!(median_ratio(&[None], &[Some(1.0)]), None);
    }
}
