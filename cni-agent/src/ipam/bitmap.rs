//! A set of small numbers that finds its gaps quickly.

const WORD: u32 = u64::BITS;

/// Numbers from 0 to a fixed bound. A second level has one bit for each full word of the first, so that looking for a
/// gap skips 4,096 numbers at a step.
#[derive(Clone, Debug)]
pub struct Bitmap {
    len: u32,
    words: Vec<u64>,
    full: Vec<u64>,
}

impl Bitmap {
    /// The empty set of numbers below `len`.
    pub fn new(len: u32) -> Self {
        let words = len.div_ceil(WORD);
        let mut new = Self { len, words: vec![0; words as usize], full: vec![0; words.div_ceil(WORD) as usize] };
        // What lies beyond the bound counts as taken, so that no search ever ends there.
        for n in len..words * WORD {
            new.insert(n);
        }
        for word in words..words.div_ceil(WORD) * WORD {
            set(&mut new.full, word);
        }
        new
    }

    /// Whether `n` is in the set. What is beyond the bound is.
    pub fn contains(&self, n: u32) -> bool {
        n >= self.len || get(&self.words, n)
    }

    /// Puts `n` in; says whether it was not there.
    pub fn insert(&mut self, n: u32) -> bool {
        if n < self.len && self.contains(n) {
            return false;
        }
        set(&mut self.words, n);
        if self.words.get(index(n)) == Some(&u64::MAX) {
            set(&mut self.full, n / WORD);
        }
        true
    }

    /// Takes `n` out; says whether it was there.
    pub fn remove(&mut self, n: u32) -> bool {
        if n >= self.len || !self.contains(n) {
            return false;
        }
        clear(&mut self.words, n);
        clear(&mut self.full, n / WORD);
        true
    }

    /// The numbers in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let bits = |(n, word): (u32, &u64)| {
            let word = *word;
            (0..WORD).filter(move |bit| word >> bit & 1 == 1).map(move |bit| n * WORD + bit)
        };
        (0..).zip(&self.words).filter(|(_, word)| **word != 0).flat_map(bits).take_while(|n| *n < self.len)
    }

    /// The first number from `start` on, going round at the bound, that is not in the set.
    pub fn next_gap(&self, start: u32) -> Option<u32> {
        let start = if start < self.len { start } else { 0 };
        self.gap_from(start).or_else(|| self.gap_from(0))
    }

    fn gap_from(&self, start: u32) -> Option<u32> {
        let word = self.words.get(index(start))?;
        if let Some(bit) = zero_from(*word, start % WORD) {
            return Some(start - start % WORD + bit);
        }
        let first = start / WORD + 1;
        let mut from = first % WORD;
        for (n, full) in (0..).zip(&self.full).skip(index(first)) {
            if let Some(bit) = zero_from(*full, from) {
                let word = n * WORD + bit;
                let gap = zero_from(*self.words.get(word as usize)?, 0)?;
                return Some(word * WORD + gap);
            }
            from = 0;
        }
        None
    }
}

fn index(n: u32) -> usize {
    (n / WORD) as usize
}

fn get(words: &[u64], n: u32) -> bool {
    words.get(index(n)).is_some_and(|word| word >> (n % WORD) & 1 == 1)
}

fn set(words: &mut [u64], n: u32) {
    if let Some(word) = words.get_mut(index(n)) {
        *word |= 1 << (n % WORD);
    }
}

fn clear(words: &mut [u64], n: u32) {
    if let Some(word) = words.get_mut(index(n)) {
        *word &= !(1 << (n % WORD));
    }
}

/// The lowest bit of `word` from `bit` on that is 0.
fn zero_from(word: u64, bit: u32) -> Option<u32> {
    let ones = (word | ((1 << bit) - 1)).trailing_ones();
    (ones < WORD).then_some(ones)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bitmap_is_a_set_that_knows_its_gaps(
            len in 1u32..10_000,
            holes in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..300),
            full in any::<bool>(),
        ) {
            let mut map = Bitmap::new(len);
            let mut set = BTreeSet::new();
            if full {
                for n in 0..len {
                    prop_assert!(map.insert(n));
                    set.insert(n);
                }
                for hole in holes {
                    let n = hole.index(len as usize) as u32;
                    prop_assert_eq!(map.remove(n), set.remove(&n));
                }
            }
            for (insert, at) in steps {
                let n = at.index(len as usize) as u32;
                let (got, wanted) = if insert { (map.insert(n), set.insert(n)) } else { (map.remove(n), set.remove(&n)) };
                prop_assert_eq!(got, wanted);
                prop_assert_eq!(map.contains(n), set.contains(&n));
                let gap = (n..len).chain(0..n).find(|m| !set.contains(m));
                prop_assert_eq!(map.next_gap(n), gap);
            }
            prop_assert_eq!(map.iter().collect::<BTreeSet<u32>>(), set);
        }
    }

    #[test]
    fn what_is_beyond_the_bound_is_never_a_gap() {
        for len in [1, 63, 64, 65, 4096, 4097] {
            let mut map = Bitmap::new(len);
            assert!(map.contains(len));
            for n in 0..len {
                assert_eq!(map.next_gap(0), Some(n));
                assert!(map.insert(n));
            }
            assert_eq!(map.next_gap(0), None);
            assert_eq!(map.next_gap(len + 100), None);
            assert!(!map.remove(len));
        }
    }
}
