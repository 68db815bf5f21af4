//! What holds for each of the 65,536 ports of a protocol, in as few pieces as it has.

/// A value for every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space<T> {
    /// Where each piece begins, by port; the first at 0. Neighbours differ.
    pieces: Vec<(u16, T)>,
}
impl<T: Copy + Eq> Space<T> {
    /// The same value for all.
    pub fn new(value: T) -> Self {
        Self { pieces: vec![(0, value)] }
    }

    /// Changes the values of the ports from `first` to `last`.
    pub fn paint(&mut self, first: u16, last: u16, change: impl Fn(T) -> T) {
        let mut painted: Vec<(u16, T)> = Vec::with_capacity(self.pieces.len() + 2);
        let mut push = |start: u16, value: T| {
            if painted.last().is_none_or(|(_, before)| *before != value) {
                painted.push((start, value));
            }
        };
        for (start, end, value) in self.pieces() {
            if end < first || start > last {
                push(start, value);
                continue;
            }
            if start < first {
                push(start, value);
            }
            push(start.max(first), change(value));
            if end > last {
                push(last + 1, value);
            }
        }
        self.pieces = painted;
    }

    /// First port, last port and value of each piece.
    pub fn pieces(&self) -> impl Iterator<Item = (u16, u16, T)> {
        let ends = self.pieces.iter().skip(1).map(|(start, _)| start - 1).chain([u16::MAX]);
        self.pieces.iter().zip(ends).map(|((start, value), end)| (*start, end, *value))
    }

    /// The value when all ports have the same.
    pub fn uniform(&self) -> Option<T> {
        (self.pieces.len() == 1).then(|| self.pieces[0].1)
    }
}

/// The fewest prefixes that cover the ports from `first` to `last`, each with its length in bits.
pub fn prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
    let mut all = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        // The largest block that begins here and does not reach beyond the end.
        let aligned = at.trailing_zeros().min(16);
        let fits = (end - at).ilog2();
        let bits = aligned.min(fits);
        // `at` is below `end`, which is 65,536 at most; `bits` is 16 at most.
        all.push((at as u16, 16 - bits as u8));
        at += 1 << bits;
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prefixes_cover_the_range_once(a in any::<u16>(), b in any::<u16>()) {
            let (first, last) = (a.min(b), a.max(b));
            let mut next = u32::from(first);
            for (port, bits) in prefixes(first, last) {
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(next % (1 << (16 - bits)), 0);
                next += 1 << (16 - bits);
            }
            prop_assert_eq!(next, u32::from(last) + 1);
            prop_assert!(prefixes(first, last).len() <= 30);
        }

        #[test]
        fn painting_is_painting_every_port(strokes in proptest::collection::vec((any::<u16>(), any::<u16>(), 0_u8..4), 0..12)) {
            let mut space = Space::new(0_u8);
            let mut every = vec![0_u8; 65_536];
            for (a, b, value) in strokes {
                let (first, last) = (a.min(b), a.max(b));
                // As a first match does: what has a value keeps it.
                let change = |old: u8| if old == 0 { value } else { old };
                space.paint(first, last, change);
                every[usize::from(first)..=usize::from(last)].iter_mut().for_each(|v| *v = change(*v));
            }
            let mut seen = Vec::new();
            for (first, last, value) in space.pieces() {
                seen.extend(std::iter::repeat_n(value, usize::from(last - first) + 1));
            }
            prop_assert!(seen == every);
            let neighbours: Vec<u8> = space.pieces().map(|(.., v)| v).collect();
            prop_assert!(neighbours.windows(2).all(|w| w[0] != w[1]));
        }
    }

    #[test]
    fn the_ends_of_the_port_space_are_ports() {
        assert_eq!(prefixes(0, u16::MAX), [(0, 0)]);
        assert_eq!(prefixes(u16::MAX, u16::MAX), [(u16::MAX, 16)]);
        assert_eq!(prefixes(1, u16::MAX).len(), 16);
        assert_eq!(prefixes(1, 65_534).len(), 30);
    }
}
