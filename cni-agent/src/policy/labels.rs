//! Labels and what selects by them.
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::objects::Flaw;

/// The labels of an object, sorted by key; texts are shared between objects, and a copy is a reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    pairs: Arc<[(Arc<str>, Arc<str>)]>,
}
impl Labels {
    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.pairs.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.pairs[at].1)
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.pairs.iter()
    }
}
impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    /// Of pairs in the order of their keys, each once.
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(pairs: I) -> Self {
        Self { pairs: pairs.into_iter().collect() }
    }
}

/// What many objects have, each in memory once.
#[derive(Debug)]
pub struct Shared<T: Ord + ?Sized> {
    known: BTreeSet<Arc<T>>,
    /// How many there may be before those that nobody uses are looked for.
    limit: usize,
}
impl<T: Ord + ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { known: BTreeSet::new(), limit: 0 }
    }
}
impl<T: Ord + ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { known: self.known.clone(), limit: self.limit }
    }
}
impl<T: Ord + ?Sized> Shared<T> {
    /// The shared copy.
    pub fn share<'a, S: Ord + ?Sized>(&mut self, wanted: &'a S) -> Arc<T>
    where
        Arc<T>: Borrow<S>,
        &'a S: Into<Arc<T>>,
    {
        if let Some(known) = self.known.get(wanted) {
            return Arc::clone(known);
        }
        self.add(wanted.into())
    }
    /// The shared copy of what the caller has no other use for.
    pub fn keep(&mut self, wanted: T) -> Arc<T>
    where
        T: Sized,
    {
        match self.known.get(&wanted) {
            Some(known) => Arc::clone(known),
            None => self.add(Arc::new(wanted)),
        }
    }
    fn add(&mut self, new: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.limit {
            self.known.retain(|t| Arc::strong_count(t) > 1);
            self.limit = 2 * self.known.len() + 256;
        }
        self.known.insert(Arc::clone(&new));
        new
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
    /// Packs them as closely as it goes.
    pub fn pack(&mut self) {
        self.known = std::mem::take(&mut self.known).into_iter().collect();
    }
}

/// Texts that many objects have, each in memory once.
pub type Texts = Shared<str>;
impl Texts {
    /// Labels of shared texts.
    pub fn labels(&mut self, labels: &BTreeMap<String, String>) -> Labels {
        labels.iter().map(|(k, v)| (self.share(k), self.share(v))).collect()
    }
}

/// Values of a label, in order and each once.
type Values = Box<[String]>;

/// What a key must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Demand {
    /// There, with one of these values.
    In(Values),
    /// Absent, or there with none of these values.
    NotIn(Values),
    /// There.
    Exists,
    /// Absent.
    Absent,
}

/// A selector of objects by their labels: all demands hold. Without any it selects every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    /// In order and each once: there are thousands of selectors, of a demand or two.
    demands: Box<[(String, Demand)]>,
}
impl LabelSelector {
    /// Takes the API's selector over; `field` is its path, for what is wrong with it.
    ///
    /// # Errors
    /// What the API server would refuse.
    pub fn read(selector: &meta::LabelSelector, field: &str) -> Result<Self, Flaw> {
        let mut demands = BTreeSet::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            demands.insert((key.clone(), Demand::In([value.clone()].into())));
        }
        for (n, e) in selector.match_expressions.iter().flatten().enumerate() {
            let flaw =
                |field_of: &str, cause: String| Flaw::new(format!("{field}.matchExpressions[{n}].{field_of}"), cause);
            let values: BTreeSet<&String> = e.values.iter().flatten().collect();
            let values: Values = values.into_iter().cloned().collect();
            if e.key.is_empty() {
                return Err(flaw("key", "it is empty".into()));
            }
            let demand = match (e.operator.as_str(), values.is_empty()) {
                ("In", false) => Demand::In(values),
                ("NotIn", false) => Demand::NotIn(values),
                ("Exists", true) => Demand::Exists,
                ("DoesNotExist", true) => Demand::Absent,
                ("In" | "NotIn", true) => return Err(flaw("values", format!("{} needs at least one", e.operator))),
                ("Exists" | "DoesNotExist", false) => return Err(flaw("values", format!("{} takes none", e.operator))),
                (other, _) => {
                    let cause = format!("it is `{other}`, not one of In, NotIn, Exists, DoesNotExist");
                    return Err(flaw("operator", cause));
                }
            };
            demands.insert((e.key.clone(), demand));
        }
        Ok(Self { demands: demands.into_iter().collect() })
    }

    /// Whether it selects an object with these labels.
    pub fn selects<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.demands.iter().all(|(key, demand)| match (demand, label(key)) {
            (Demand::In(values), Some(value)) => has(values, value),
            (Demand::In(_), None) => false,
            (Demand::NotIn(values), value) => value.is_none_or(|v| !has(values, v)),
            (Demand::Exists, value) => value.is_some(),
            (Demand::Absent, value) => value.is_none(),
        })
    }

    /// The keys that it looks at, with the values that it tells apart.
    pub fn mentions(&self) -> impl Iterator<Item = (&str, Option<&[String]>)> {
        self.demands.iter().map(|(key, demand)| match demand {
            Demand::In(values) | Demand::NotIn(values) => (key.as_str(), Some(&**values)),
            Demand::Exists | Demand::Absent => (key.as_str(), None),
        })
    }
}

fn has(values: &[String], value: &str) -> bool {
    values.binary_search_by(|v| v.as_str().cmp(value)).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selects(selector: Value, labels: &[(&str, &str)]) -> bool {
        let selector: meta::LabelSelector = serde_json::from_value(selector).unwrap();
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        LabelSelector::read(&selector, "s").unwrap().selects(|k| labels.get(k).copied())
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert!(selects(json!({}), &[]) && selects(json!({"matchLabels": {}}), &[("a", "b")]));
    }

    #[test]
    fn a_label_must_be_there_with_exactly_that_value() {
        let s = json!({"matchLabels": {"a": ""}});
        assert!(selects(s.clone(), &[("a", "")]) && !selects(s.clone(), &[]) && !selects(s, &[("a", "x")]));
    }

    #[test]
    fn operators_differ_on_an_absent_key() {
        let one = |operator: &str, values: Value| {
            let with = |labels: &[(&str, &str)]| {
                selects(json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}), labels)
            };
            (with(&[]), with(&[("a", "x")]), with(&[("a", "y")]))
        };
        assert_eq!(one("In", json!(["x"])), (false, true, false));
        assert_eq!(one("NotIn", json!(["x"])), (true, false, true));
        assert_eq!(one("Exists", json!(null)), (false, true, true));
        assert_eq!(one("DoesNotExist", json!([])), (true, false, false));
    }

    #[test]
    fn values_are_found_in_whatever_order_they_are_written() {
        let s = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["z", "b", "z", "m", "a"]}]});
        for value in ["a", "b", "m", "z"] {
            assert!(selects(s.clone(), &[("a", value)]), "{value}");
        }
        assert!(!selects(s.clone(), &[("a", "c")]) && !selects(s, &[("a", "")]));
        let read = |values: Value| {
            let object = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]});
            LabelSelector::read(&serde_json::from_value(object).unwrap(), "s").unwrap()
        };
        assert_eq!(read(json!(["z", "b", "z"])), read(json!(["b", "z"])));
    }

    #[test]
    fn all_demands_hold_at_a_time() {
        let s = json!({"matchLabels": {"a": "x"}, "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x"]}]});
        assert!(!selects(s.clone(), &[("a", "x")]) && !selects(s, &[]));
    }

    #[test]
    fn what_the_api_refuses_is_named_by_its_field() {
        let cases = [
            (json!([{"key": "a", "operator": "Is"}]), "s.matchExpressions[0].operator: it is `Is`"),
            (json!([{"key": "a", "operator": "In", "values": []}]), "s.matchExpressions[0].values: In needs"),
            (
                json!([{"key": "a", "operator": "Exists", "values": ["x"]}]),
                "s.matchExpressions[0].values: Exists takes none",
            ),
            (json!([{"key": "", "operator": "Exists"}]), "s.matchExpressions[0].key"),
        ];
        for (expressions, text) in cases {
            let selector = serde_json::from_value(json!({"matchExpressions": expressions})).unwrap();
            let flaw = LabelSelector::read(&selector, "s").unwrap_err().to_string();
            assert!(flaw.starts_with(text), "{flaw}");
        }
    }

    #[test]
    fn texts_that_nobody_uses_are_forgotten() {
        let mut texts = Texts::default();
        let kept = texts.share("kept");
        for n in 0..10_000 {
            texts.share(&n.to_string());
        }
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")) && texts.known.len() < 3000, "{}", texts.known.len());
    }
}
