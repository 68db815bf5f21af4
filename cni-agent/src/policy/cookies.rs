//! Cookies: what names a rule in the maps, and in what the programs count and report.
//!
//! A rule has the same one for as long as its policy is called the same and says the same in it, whatever else changes, and whichever agent has compiled it: so what is counted
//! under it goes on. It is a hash; where two rules of the node have the same one, the later one takes the next number.
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher as _},
    sync::Arc,
};

use super::{
    objects::{Direction, Rule},
    store::Revision,
};

/// The rule that a cookie names.
#[derive(Debug)]
pub struct Named {
    /// Its policy.
    pub revision: Arc<Revision>,
    /// The direction.
    pub direction: Direction,
    /// Its number in the object, from 0.
    pub n: usize,
    /// Versions of the policy that are in force with it.
    users: usize,
}
impl Named {
    fn rule(&self) -> Option<&Rule> {
        self.revision.policy.rules(self.direction)?.get(self.n)
    }
}

/// Those of all rules in force.
#[derive(Debug, Default)]
pub struct Cookies {
    named: BTreeMap<u32, Named>,
}
impl Cookies {
    /// Those of a policy's rules of a direction, in their order, for one more version.
    pub fn take(&mut self, revision: &Arc<Revision>, direction: Direction) -> Box<[u32]> {
        let rules = revision.policy.rules(direction).unwrap_or_default();
        let mut equals: BTreeMap<u64, u32> = BTreeMap::new();
        let mut take = |(n, rule): (usize, &Rule)| {
            let words = hash(&(&revision.policy.name, direction, rule));
            let before = equals.entry(words).or_default();
            let mut cookie = fold(hash(&(words, *before)));
            *before += 1;
            loop {
                match self.named.get_mut(&cookie) {
                    None => {
                        let revision = Arc::clone(revision);
                        self.named.insert(cookie, Named { revision, direction, n, users: 1 });
                        return cookie;
                    }
                    Some(named)
                        if named.direction == direction && named.revision.policy.name == revision.policy.name
                        // Of one version each rule has its own.
                        && named.revision.number != revision.number && named.rule() == Some(rule) =>
                    {
                        (named.revision, named.n) = (Arc::clone(revision), n);
                        named.users += 1;
                        return cookie;
                    }
                    Some(_) => cookie = cookie.wrapping_add(1).max(1),
                }
            }
        };
        rules.iter().enumerate().map(&mut take).collect()
    }
    /// One version less.
    pub fn release(&mut self, cookies: &[u32]) {
        for cookie in cookies {
            if let Some(named) = self.named.get_mut(cookie) {
                named.users -= 1;
                if named.users == 0 {
                    self.named.remove(cookie);
                }
            }
        }
    }
    /// The rule that this one names.
    pub fn get(&self, cookie: u32) -> Option<&Named> {
        self.named.get(&cookie)
    }
}

fn hash(what: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
/// Never 0, which names no rule.
fn fold(hash: u64) -> u32 {
    ((hash >> 32) as u32 ^ hash as u32).max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::objects;

    fn revision(number: u64, name: &str, rules: &Value) -> Arc<Revision> {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name},
            "spec": {"podSelector": {}, "ingress": rules},
        });
        Arc::new(Revision::of(number, Arc::new(objects::network_policy(object).expect("a policy"))))
    }
    fn port(n: u16) -> Value {
        json!({"ports": [{"port": n}]})
    }

    #[test]
    fn a_rule_keeps_its_cookie_while_its_words_stay_and_in_every_agent() {
        let mut cookies = Cookies::default();
        let first = revision(1, "web", &json!([port(80), port(81), port(80)]));
        let given = cookies.take(&first, Direction::Ingress);
        let others: std::collections::BTreeSet<u32> = given.iter().copied().collect();
        assert!(others.len() == 3 && !others.contains(&0), "equal rules of a policy are told apart: {given:?}");
        assert_eq!(Cookies::default().take(&first, Direction::Ingress), given);
        // The first rule is another one now, and the second stands first.
        let second = revision(2, "web", &json!([port(81), port(82)]));
        let anew = cookies.take(&second, Direction::Ingress);
        assert_eq!(anew[0], given[1]);
        assert!(!given.contains(&anew[1]));
        cookies.release(&given);
        let named = cookies.get(given[1]).expect("the newer version has it");
        assert_eq!((named.revision.number, named.n), (2, 0));
        assert!(cookies.get(given[0]).is_none());
        cookies.release(&anew);
        assert!(cookies.named.is_empty());
    }

    #[test]
    fn rules_of_other_policies_and_directions_have_others() {
        let rules = json!([port(80)]);
        let mut cookies = Cookies::default();
        let mut all = vec![
            cookies.take(&revision(1, "web", &rules), Direction::Ingress)[0],
            cookies.take(&revision(2, "db", &rules), Direction::Ingress)[0],
        ];
        all.dedup();
        assert_eq!(all.len(), 2);
        assert_eq!(fold(0), 1, "0 names no rule");
    }

    #[test]
    fn two_rules_with_one_hash_get_two_numbers() {
        let mut cookies = Cookies::default();
        let taken = Cookies::default().take(&revision(1, "web", &json!([port(80)])), Direction::Ingress)[0];
        let other =
            Named { revision: revision(2, "db", &json!([port(80)])), direction: Direction::Ingress, n: 0, users: 1 };
        cookies.named.insert(taken, other);
        let given = cookies.take(&revision(1, "web", &json!([port(80)])), Direction::Ingress)[0];
        assert_eq!(given, taken.wrapping_add(1).max(1));
        assert_eq!(cookies.get(taken).map(|named| named.revision.number), Some(2));
    }
}
