//! Random numbers that a seed decides.

use std::time::Duration;

/// A stream of random numbers (SplitMix64).
///
/// Everything that draws has a stream of its own, made of the run's seed and a number. So a peer that
/// is left out of a run changes nothing of what the others draw.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut this = Self(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95));
        // Seeds are mostly small and close together.
        this.next();
        this
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `count`; 0 where there is none.
    pub(super) fn below(&mut self, count: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(count)) >> 64) as u64
    }

    /// A number of the range, its ends included.
    pub(super) fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// Whether something comes to pass that does once in so many times.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A number up to `most`, of any order of magnitude: as often below 10 as from 10 to 100.
    pub(super) fn magnitude(&mut self, most: u64) -> u64 {
        let bits = u64::from(64 - most.leading_zeros());
        let bits = self.between(0, bits);
        self.next()
            .checked_shr((64 - bits) as u32)
            .unwrap_or(0)
            .min(most)
    }

    /// A span up to `most`, of any order of magnitude from a microsecond on.
    pub(super) fn span(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.magnitude(most.as_micros() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_in_its_range() {
        let mut random = Random::new(1, 2);
        let mut seen = [false; 4];
        for _ in 0..1000 {
            seen[random.below(4) as usize] = true;
            assert!((3..=5).contains(&random.between(3, 5)));
            assert!(random.magnitude(100) <= 100);
            assert!(random.span(Duration::from_millis(1)) <= Duration::from_millis(1));
        }
        assert_eq!((seen, random.below(0)), ([true; 4], 0));
        assert_ne!(Random::new(1, 2).next(), Random::new(1, 3).next());
    }
}
