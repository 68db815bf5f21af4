//! How often rules and policy sets have decided, as the programs count it.
use std::{collections::BTreeMap, io};

use bytemuck::{bytes_of, try_pod_read_unaligned};
use cni_common::{
    policy::{HIT_OF_SET, HitKey, VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_DENY},
    schema,
};

use super::Datapath;

/// How often flows were judged so: each at its first packet, and once more after each change of policies; what is denied, packet by packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// They may pass.
    pub allowed: u64,
    /// They may not.
    pub denied: u64,
    /// They may only pass because policies are in audit mode.
    pub audited: u64,
}

/// Flows by what has decided about them. What the map has forgotten counts from nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    flows: BTreeMap<u64, u64>,
}
impl Hits {
    /// What the programs have counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(datapath: &Datapath) -> io::Result<Self> {
        let entries = datapath.map(&schema::HITS).dump()?;
        Ok(Self::of(
            entries
                .iter()
                .filter_map(|(key, n)| Some((try_pod_read_unaligned(key).ok()?, try_pod_read_unaligned(n).ok()?))),
        ))
    }
    /// From the entries of the map.
    pub fn of(entries: impl IntoIterator<Item = (HitKey, u64)>) -> Self {
        Self { flows: entries.into_iter().map(|(key, n)| (key.number(), n)).collect() }
    }
    /// Where the rule with this cookie has decided.
    pub fn of_rule(&self, cookie: u32) -> Judged {
        self.by(|verdict| HitKey::of_rule(cookie, verdict))
    }
    /// Where this policy set has, and none of its rules.
    pub fn of_set(&self, set: u32) -> Judged {
        self.by(|verdict| HitKey::of_set(set, verdict))
    }
    fn by(&self, key: impl Fn(u32) -> HitKey) -> Judged {
        let flows = |verdict| self.flows.get(&key(verdict).number()).copied().unwrap_or_default();
        Judged { allowed: flows(VERDICT_ALLOW), denied: flows(VERDICT_DENY), audited: flows(VERDICT_AUDIT) }
    }
}

/// Forgets what was counted by numbers of policy sets: an agent that begins may give them anew. Cookies name the same rules in each.
///
/// # Errors
/// When the map cannot be read or written.
pub fn forget_sets(datapath: &Datapath) -> io::Result<()> {
    let map = datapath.map(&schema::HITS);
    let of_set = |key: &HitKey| key.what & HIT_OF_SET != 0;
    for key in map.keys()?.iter().filter_map(|key| try_pod_read_unaligned(key).ok()).filter(of_set) {
        map.delete(bytes_of(&key))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_and_a_policy_set_of_one_number_are_told_apart() {
        let hits = Hits::of([
            (HitKey::of_rule(7, VERDICT_ALLOW), 3),
            (HitKey::of_rule(7, VERDICT_AUDIT), 1),
            (HitKey::of_set(7, VERDICT_DENY), 5),
        ]);
        assert_eq!(hits.of_rule(7), Judged { allowed: 3, denied: 0, audited: 1 });
        assert_eq!(hits.of_set(7), Judged { allowed: 0, denied: 5, audited: 0 });
        assert_eq!(hits.of_rule(8), Judged::default());
    }
}
