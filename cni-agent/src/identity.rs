//! The label class hash: what the VXLAN header says of a packet's sender.
//!
//! Two pods are of one class when their namespace's name and their labels are equal. The hash goes over the wire between
//! nodes, so its definition is fixed by the golden vectors below:
//!
//! - `text(s)` is the length of `s` in bytes as a 32-bit big-endian number, then the bytes of `s` (UTF-8).
//! - The input is `text(namespace)`, the number of labels as a 32-bit big-endian number, then for each label in the byte
//!   order of the keys `text(key)` and `text(value)`. So no two classes have the same input.
//! - The hash is the first three bytes of its SHA-256 as a big-endian number. 0 means "unknown" on the wire; a hash that
//!   is 0 becomes 1.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// What the VNI carries when the sender's labels are not known.
pub const UNKNOWN: u32 = 0;

/// The hash of a class: 24 bits, host order, never [`UNKNOWN`].
pub fn label_class(namespace: &str, labels: &BTreeMap<String, String>) -> u32 {
    class_of(namespace, labels.len(), labels.iter())
}

/// The same of so many labels, in the order of their keys.
pub fn class_of(
    namespace: &str,
    count: usize,
    labels: impl Iterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
) -> u32 {
    let mut hash = Sha256::new();
    text(&mut hash, namespace);
    number(&mut hash, count);
    for (key, value) in labels {
        text(&mut hash, key.as_ref());
        text(&mut hash, value.as_ref());
    }
    let [a, b, c, ..] = <[u8; 32]>::from(hash.finalize());
    u32::from_be_bytes([0, a, b, c]).max(1)
}

fn text(hash: &mut Sha256, text: &str) {
    number(hash, text.len());
    hash.update(text.as_bytes());
}

fn number(hash: &mut Sha256, n: usize) {
    // Kubernetes bounds all of these: a label has at most 63 characters, an object at most 1.5 MB.
    hash.update(u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Namespace, labels, hash.
    type Vector = (&'static str, &'static [(&'static str, &'static str)], u32);

    /// Made with another implementation of the definition above (Python's hashlib). Never change one: nodes of two
    /// versions must agree.
    #[test]
    fn golden_vectors() {
        let vectors: [Vector; 6] = [
            ("", &[], 0xaf5570),
            ("default", &[], 0x41bbc3),
            ("default", &[("app", "web")], 0xb6fe2b),
            ("kube-system", &[("k8s-app", "kube-dns"), ("pod-template-hash", "5d78c9869d")], 0x5e4122),
            ("shop", &[("app.kubernetes.io/name", "cart"), ("tier", ""), ("a", "1")], 0xa9e28c),
            ("größe", &[("z", "2"), ("Z", "1")], 0x7dd7d5),
        ];
        for (namespace, labels, expected) in vectors {
            assert_eq!(label_class(namespace, &map(labels)), expected, "{namespace} {labels:?}");
        }
    }

    #[test]
    fn text_cannot_move_from_one_field_to_the_next() {
        let classes = [
            label_class("ab", &map(&[("c", "d")])),
            label_class("a", &map(&[("bc", "d")])),
            label_class("ab", &map(&[("cd", "")])),
            label_class("ab", &map(&[("", "cd")])),
            label_class("ab", &map(&[("c", ""), ("d", "")])),
            label_class("abcd", &map(&[])),
        ];
        let different: std::collections::BTreeSet<u32> = classes.into_iter().collect();
        assert_eq!(different.len(), classes.len(), "{classes:x?}");
    }

    #[test]
    fn the_reserved_number_is_never_given() {
        // The first namespace name of this form whose hash is 0 before the rule; found by search.
        assert_eq!(label_class("n27985129", &map(&[])), 1);
    }

    proptest! {
        #[test]
        fn a_hash_has_24_bits_and_is_never_unknown(
            namespace in "[a-z]{0,8}", labels in proptest::collection::btree_map("[a-z]{0,4}", "[a-z]{0,4}", 0..4)
        ) {
            let class = label_class(&namespace, &labels);
            prop_assert!(class != UNKNOWN && class < 1 << 24);
        }
    }

    fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }
}
