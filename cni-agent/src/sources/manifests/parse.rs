//! The text of one manifest file → objects. Pure.
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use serde_saphyr::Spanned;

use crate::{
    policy::objects::{self as policies, Broken, PolicyName, Read},
    sources::{
        convert::{self, ConvertError},
        objects as api,
    },
    tables::{Namespace, Node, Pod, Row, ServiceCidr},
};

/// Documents of a file at most.
const MAX_DOCUMENTS: usize = 100_000;

/// An object of a kind that we follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A node.
    Node(Node),
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A policy of either kind.
    Policy(Box<Read>),
    /// Addresses of Services.
    ServiceCidr(ServiceCidr),
}
impl Object {
    /// The table row that it fills.
    pub fn row(&self) -> Row {
        match self {
            Self::Node(node) => Row::Node(node.name.clone()),
            Self::Namespace(namespace) => Row::Namespace(namespace.name.as_str().into()),
            Self::Pod(pod) => Row::Pod(pod.key()),
            Self::Policy(read) => Row::Policy(read.policy.name.clone().into()),
            Self::ServiceCidr(of) => Row::ServiceCidr(of.name.as_str().into()),
        }
    }
}

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Its objects, in their order.
    pub objects: Vec<Object>,
    /// Policies that are none, which change nothing: the line where each begins, its name if it has one, and what is wrong.
    pub broken: Vec<(u64, Option<PolicyName>, Broken)>,
}

/// Why a file gives no objects.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not YAML (or not JSON, which is YAML).
    #[error("line {line}: {cause}")]
    Syntax {
        /// Counted from 1.
        line: u64,
        /// What the parser says.
        cause: String,
    },
    /// A document without the fields that say what it is.
    #[error("document at line {line}: it has no `{field}`, so it is no Kubernetes object")]
    NoObject {
        /// Where the document begins.
        line: u64,
        /// The missing field.
        field: &'static str,
    },
    /// A document of a kind that we follow, but not of its form.
    #[error("document at line {line}: {kind}, field {field}: {cause}")]
    Form {
        /// Where the document begins.
        line: u64,
        /// Its kind.
        kind: String,
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A document of the right form that says something impossible.
    #[error("document at line {line}: {source}")]
    Content {
        /// Where the document begins.
        line: u64,
        /// What is wrong with it; part of this error's own text.
        source: ConvertError,
    },
}

/// The objects of a file in their order; kinds that we do not follow are left out, lists are opened. A policy that is broken does not make the
/// file unusable: others are to go on protecting what they protect.
pub fn objects(text: &str) -> Result<Parsed, ParseError> {
    // JSON is YAML, but a JSON file may be indented by tabs, which YAML forbids.
    let json = text.trim_start().starts_with('{').then(|| serde_json::from_str::<Json>(text).ok()).flatten();
    let mut objects = Parsed::default();
    if let Some(document) = json {
        for object in document.objects(text) {
            match plain_pod(object) {
                Some(pod) => objects.objects.push(Object::Pod(pod)),
                None => take(1, serde_json::from_str(object).map_err(|error| json_syntax(&error))?, &mut objects)?,
            }
        }
        return Ok(objects);
    }
    // One document in memory at a time: a file may list the pods of a cluster.
    for document in serde_saphyr::read_with_options::<_, Spanned<Value>>(&mut text.as_bytes(), limits()) {
        let document = document.map_err(|error| syntax(&error))?;
        take(document.referenced.line().max(1), document.value, &mut objects)?;
    }
    Ok(objects)
}

/// A file of JSON: an object, or a list of some, of which one at a time is taken apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    #[serde(borrow, default)]
    api_version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}
impl<'a> Json<'a> {
    fn objects(&self, text: &'a str) -> Vec<&'a str> {
        let is = |field: Option<&RawValue>| field.and_then(|f| serde_json::from_str::<String>(f.get()).ok());
        let (version, kind) = (is(self.api_version), is(self.kind));
        match (version.as_deref().zip(kind.as_deref()), &self.items) {
            (Some((version, kind)), Some(items)) if is_list(version, kind) => items.iter().map(|i| i.get()).collect(),
            _ => vec![text],
        }
    }
}

/// A pod in JSON, read without a tree of values: of large files nearly all are. What is wrong with any other object, [`take`] says.
fn plain_pod(text: &str) -> Option<Pod> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head<'a> {
        api_version: &'a str,
        kind: &'a str,
    }
    let head: Head = serde_json::from_str(text).ok()?;
    if (head.api_version, head.kind) != ("v1", "Pod") {
        return None;
    }
    convert::pod(&serde_json::from_str::<api::Pod>(text).ok()?).ok()
}

/// The parser's own limits on what a hostile file may cost hold, but one file may list a cluster's pods.
fn limits() -> serde_saphyr::Options {
    serde_saphyr::options! { budget: serde_saphyr::budget! { max_documents: MAX_DOCUMENTS } }
}

fn syntax(error: &serde_saphyr::Error) -> ParseError {
    let line = error.location().map_or(0, |location| location.line());
    // The library draws the place in the text; we want one line.
    let text = error.without_snippet().to_string();
    ParseError::Syntax { line, cause: text.lines().next().unwrap_or("not valid YAML").to_owned() }
}

fn json_syntax(error: &serde_json::Error) -> ParseError {
    ParseError::Syntax { line: error.line() as u64, cause: error.to_string() }
}

fn take(line: u64, document: Value, parsed: &mut Parsed) -> Result<(), ParseError> {
    let objects = &mut parsed.objects;
    let field = |name: &'static str| {
        let text = document.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or(ParseError::NoObject { line, field: name })
    };
    match (field("apiVersion")?.as_str(), field("kind")?.as_str()) {
        ("v1", "Node") => {
            let node = convert::node(&typed::<api::Node>(line, "Node", document)?);
            objects.push(Object::Node(node.map_err(|source| ParseError::Content { line, source })?));
        }
        ("v1", "Namespace") => {
            let namespace = convert::namespace(&typed::<api::Namespace>(line, "Namespace", document)?);
            objects.push(Object::Namespace(namespace.map_err(|source| ParseError::Content { line, source })?));
        }
        ("networking.k8s.io/v1", "ServiceCIDR") => {
            let of = convert::service_cidr(&typed::<api::ServiceCidr>(line, "ServiceCIDR", document)?);
            objects.push(Object::ServiceCidr(of.map_err(|source| ParseError::Content { line, source })?));
        }
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            let name = policies::network_name(&document);
            take_policy(line, name, policies::network_policy(document), parsed);
        }
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
            let name = policies::cluster_name(&document);
            take_policy(line, name, policies::cluster_policy(document), parsed);
        }
        ("v1", "Pod") => {
            let pod = convert::pod(&typed::<api::Pod>(line, "Pod", document)?);
            objects.push(Object::Pod(pod.map_err(|source| ParseError::Content { line, source })?));
        }
        (version, kind) if is_list(version, kind) => {
            let items = match document {
                Value::Object(mut fields) => fields.remove("items"),
                _ => None,
            };
            let Some(Value::Array(items)) = items else { return Err(ParseError::NoObject { line, field: "items" }) };
            for item in items {
                take(line, item, parsed)?;
            }
        }
        (version, kind) => tracing::debug!(line, version, kind, "kind is not followed, left out"),
    }
    Ok(())
}

fn is_list(version: &str, kind: &str) -> bool {
    matches!(
        (version, kind),
        ("v1", "List" | "NodeList" | "PodList" | "NamespaceList")
            | ("networking.k8s.io/v1", "NetworkPolicyList" | "ServiceCIDRList")
            | ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicyList")
    )
}

fn take_policy(line: u64, name: Option<PolicyName>, read: Result<Read, Broken>, parsed: &mut Parsed) {
    match read {
        Ok(read) => parsed.objects.push(Object::Policy(Box::new(read))),
        Err(broken) => parsed.broken.push((line, name, broken)),
    }
}

fn typed<T: DeserializeOwned>(line: u64, kind: &str, document: Value) -> Result<T, ParseError> {
    serde_path_to_error::deserialize(document).map_err(|error| ParseError::Form {
        line,
        kind: kind.to_owned(),
        field: error.path().to_string(),
        cause: error.into_inner().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_hold_many_documents_and_kinds() {
        let text = "\
# two nodes and what is not for us
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
---
---
apiVersion: v1
kind: Pod
metadata:
  name: p
  labels: {version: \"1.10\", on: \"yes\"}
";
        let objects = objects(text).unwrap().objects;
        assert_eq!(rows(&objects), ["node n1", "pod default/p"]);
        let Object::Pod(pod) = &objects[1] else { panic!("{objects:?}") };
        assert_eq!((pod.labels["version"].as_str(), pod.labels["on"].as_str()), ("1.10", "yes"));
    }

    #[test]
    fn a_list_in_json_says_what_it_says_in_yaml() {
        let pod = |ip: &str| {
            format!(
                r#"{{"kind": "Pod", "apiVersion": "v1", "metadata": {{"namespace": "a", "name": "p\u0031", "labels": {{"x": "y"}}}},
                    "spec": {{"nodeName": "n", "containers": []}}, "status": {{"phase": "Running", "podIPs": [{{"ip": {ip}}}]}}}}"#
            )
        };
        let list =
            |items: &[&str]| format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{}]}}"#, items.join(", "));
        let inner = list(&[r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}"#]);
        let other = r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}"#;
        // Behind a comment it is YAML.
        let both = |text: &str| [objects(text), objects(&format!("#\n{text}"))];
        let [json, yaml] = both(&list(&[&pod(r#""10.0.0.1""#), other, &inner]));
        let (json, yaml) = (json.unwrap(), yaml.unwrap());
        assert_eq!(json, yaml);
        assert!(matches!(&json.objects[..], [Object::Pod(p), Object::Node(_)] if p.name == "p1" && p.ips.len() == 1));
        for bad in ["5", r#""10.0.0.256""#] {
            let [json, yaml] = both(&list(&[&pod(bad)])).map(|read| read.unwrap_err().to_string());
            assert_eq!(json.split_once(": ").unwrap().1, yaml.split_once(": ").unwrap().1, "{bad}");
        }
    }

    #[test]
    fn json_is_read_too_indented_by_tabs_or_not() {
        let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Node\",\n\t\"metadata\": {\"name\": \"n1\"}\n}";
        assert_eq!(rows(&objects(text).unwrap().objects), ["node n1"]);
        assert_eq!(rows(&objects(&text.replace('\t', "  ")).unwrap().objects), ["node n1"]);
    }

    #[test]
    fn a_list_is_opened() {
        let item = |kind: &str, name: &str| format!("- {{apiVersion: v1, kind: {kind}, metadata: {{name: {name}}}}}\n");
        let text = format!("apiVersion: v1\nkind: List\nitems:\n{}{}", item("Pod", "a"), item("Node", "b"));
        assert_eq!(rows(&objects(&text).unwrap().objects), ["pod default/a", "node b"]);
    }

    #[test]
    fn a_file_may_list_the_pods_of_a_cluster() {
        let document = |n| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, labels: {{a: b}}}}\n");
        let text: String = (0..3000).map(document).collect();
        assert_eq!(objects(&text).unwrap().objects.len(), 3000);
    }

    #[test]
    fn policies_of_both_kinds_and_namespaces_are_read() {
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: deny}
spec: {podSelector: {}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
apiVersion: networking.k8s.io/v2
kind: NetworkPolicy
metadata: {name: other}
";
        let parsed = objects(text).unwrap();
        assert_eq!(rows(&parsed.objects), ["namespace shop", "NetworkPolicy shop/deny", "ClusterNetworkPolicy admin"]);
        assert_eq!(parsed.broken, []);
    }

    #[test]
    fn a_policy_that_is_none_leaves_the_others_usable_and_is_named() {
        let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: bad}
spec: {podSelector: [x]}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
";
        let parsed = objects(text).unwrap();
        assert_eq!(rows(&parsed.objects), ["node n1"]);
        let (line, name, broken) = &parsed.broken[0];
        assert_eq!(*line, 1);
        assert_eq!(name, &Some(PolicyName::Network { namespace: "shop".into(), name: "bad".into() }));
        assert!(broken.to_string().starts_with("NetworkPolicy shop/bad, field spec.podSelector"), "{broken}");
    }

    #[test]
    fn an_empty_file_has_no_objects() {
        for text in ["", "\n\n", "# nothing\n", "---\n---\n"] {
            assert_eq!(objects(text).unwrap(), Parsed::default(), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_line_and_the_field() {
        let pod = "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";
        let cases = [
            ("a: b\nc: [1, 2\n".to_owned(), "line "),
            ("a: b\n\tc: d\n".to_owned(), "found a tab"),
            ("- a\n".to_owned(), "document at line 1: it has no `apiVersion`"),
            ("just text".to_owned(), "document at line 1: it has no `apiVersion`"),
            (format!("{pod}spec: {{nodeName: 5}}"), "document at line 3: Pod, field spec.nodeName: invalid type"),
            (format!("{pod}spec: {{containers: [{{name: c, ports: [{{containerPort: x}}]}}]}}"), "containerPort"),
            (format!("{pod}status: {{podIP: x}}"), "document at line 3: Pod default/p: status.podIPs is `x`"),
            ("apiVersion: v1\nkind: List\n".to_owned(), "no `items`"),
        ];
        for (text, part) in cases {
            let error = objects(&text).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{part:?} is not in {error:?}");
        }
    }

    fn rows(objects: &[Object]) -> Vec<String> {
        objects.iter().map(|o| o.row().to_string()).collect()
    }
}
