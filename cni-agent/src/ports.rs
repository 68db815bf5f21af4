//! Sets of ports, as people and the kernel write them: `8080,61000-65535`.
use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use serde::{Serialize, Serializer};

/// Ports from one to another, both included. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// From `first` to `last`; none if that is empty.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }
    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }
    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }
    /// How many ports there are: 1 to 65536.
    pub const fn len(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }
    /// There is no empty one.
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A word that is no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a port nor a range of ports such as 61000-65535")]
pub struct NoPorts(String);

impl FromStr for PortRange {
    type Err = NoPorts;

    fn from_str(s: &str) -> Result<Self, NoPorts> {
        let no = || NoPorts(s.to_owned());
        let port = |word: &str| word.trim().parse().map_err(|_| no());
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        Self::new(port(first)?, port(last)?).ok_or_else(no)
    }
}

/// Any set of ports: ranges in order, with a gap between each two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<PortRange>);

impl PortSet {
    /// None.
    pub const EMPTY: Self = Self(Vec::new());

    /// Whether there is no port in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ports there are.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|r| r.len()).sum()
    }

    /// The longest range of ports without a gap, of several the lowest; none of an empty set.
    pub fn widest(&self) -> Option<PortRange> {
        self.0.iter().copied().rev().max_by_key(|r| r.len())
    }

    /// Those of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).copied().collect()
    }

    /// Those that the other set has not.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = self.0.clone();
        for taken in &other.0 {
            let parts = |r: PortRange| {
                let below = taken.first.checked_sub(1).and_then(|last| PortRange::new(r.first, last.min(r.last)));
                let above = taken.last.checked_add(1).and_then(|first| PortRange::new(first.max(r.first), r.last));
                below.into_iter().chain(above)
            };
            left = left.into_iter().flat_map(parts).collect();
        }
        Self(left)
    }

    /// Those of both sets.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }
}

impl From<PortRange> for PortSet {
    fn from(range: PortRange) -> Self {
        Self(vec![range])
    }
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let mut all: Vec<PortRange> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for r in all {
            match merged.last_mut() {
                Some(last) if u32::from(r.first) <= u32::from(last.last) + 1 => last.last = last.last.max(r.last),
                _ => merged.push(r),
            }
        }
        Self(merged)
    }
}

impl Display for PortSet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for PortSet {
    type Err = NoPorts;

    fn from_str(s: &str) -> Result<Self, NoPorts> {
        s.trim().split(',').filter(|word| !word.is_empty()).map(str::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_merged_and_written_as_the_kernel_writes_them() {
        for (text, merged) in [
            ("", ""),
            ("\n", ""),
            ("8080\n", "8080"),
            ("61000-65535,8080", "8080,61000-65535"),
            ("1-5,6-7,9", "1-7,9"),
            ("1-10,3-4,8-12", "1-12"),
            ("0-65535,65535", "0-65535"),
        ] {
            assert_eq!(set(text).to_string(), merged, "{text}");
        }
        for wrong in ["x", "1-", "5-4", "65536", "1,,a", "-1"] {
            assert!(wrong.parse::<PortSet>().unwrap_err().to_string().contains("neither a port nor"), "{wrong}");
        }
    }

    #[test]
    fn what_is_added_can_be_taken_out_again() {
        for (before, range) in
            [("", "61000-65535"), ("8080,62000-62010", "61000-65535"), ("60990-61005", "61000-65535")]
        {
            let (before, range) = (set(before), set(range));
            let added = range.minus(&before);
            let after = before.union(&added);
            assert_eq!(after, before.union(&range));
            assert_eq!(after.minus(&added), before, "{before} {range}");
        }
        assert_eq!(set("1-10").minus(&set("4-6,10")).to_string(), "1-3,7-9");
        assert_eq!(set("0-65535").minus(&set("0,65535")).to_string(), "1-65534");
        assert_eq!(set("1-10,20").common(&set("5-20")).to_string(), "5-10,20");
        assert_eq!((set("1-10,20").len(), PortSet::EMPTY.len()), (11, 0));
        assert_eq!(set("1-2,10-20,30-40,50").widest(), PortRange::new(10, 20), "the lowest of two");
        assert_eq!(PortSet::EMPTY.widest(), None);
    }

    proptest! {
        #[test]
        fn sets_of_ranges_are_sets_of_ports(
            a in proptest::collection::vec((0_u16..40, 0_u16..6), 0..6),
            b in proptest::collection::vec((0_u16..40, 0_u16..6), 0..6),
        ) {
            let ranges = |all: &[(u16, u16)]| all.iter().filter_map(|(at, n)| PortRange::new(*at, at + n)).collect::<PortSet>();
            let ports = |s: &PortSet| s.0.iter().flat_map(|r| r.first..=r.last).collect::<BTreeSet<u16>>();
            let (a, b) = (ranges(&a), ranges(&b));
            prop_assert_eq!(ports(&a.union(&b)), &ports(&a) | &ports(&b));
            prop_assert_eq!(ports(&a.minus(&b)), &ports(&a) - &ports(&b));
            prop_assert_eq!(ports(&a.common(&b)), &ports(&a) & &ports(&b));
            prop_assert_eq!(a.to_string().parse::<PortSet>(), Ok(a));
        }
    }
}
