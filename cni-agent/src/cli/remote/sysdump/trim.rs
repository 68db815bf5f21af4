//! What of an object, and of a text, goes into an archive that is given away. Pure.
//!
//! Of pods of others only what Weft itself looks at is taken, by name, so that what somebody hides in an argument, a probe or an annotation stays where it is;
//! Secrets and service accounts' tokens are never asked for.
use serde_json::{Map, Value, json};

/// Replaces a secret.
const GONE: &str = "(removed by weft sysdump)";

/// An object without who has written what, without annotations but Weft's own, and without values of environment variables.
pub(super) fn object(mut object: Value) -> Value {
    clean(&mut object);
    object
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("managedFields");
            if let Some(Value::Object(annotations)) = fields.get_mut("annotations") {
                annotations.retain(|name, _| name.starts_with("weft.dev/"));
            }
            if let Some(Value::Array(variables)) = fields.get_mut("env") {
                for variable in variables.iter_mut().filter_map(Value::as_object_mut) {
                    if variable.contains_key("value") {
                        variable.insert("value".into(), GONE.into());
                    }
                }
            }
            fields.values_mut().for_each(clean);
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        _ => {}
    }
}

/// A pod, as far as a network is concerned.
pub(super) fn pod(pod: &Value) -> Value {
    let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    let containers: Vec<Value> =
        spec["containers"].as_array().into_iter().flatten().map(|c| some(c, &["name", "image", "ports"])).collect();
    json!({
        "metadata": some(metadata, &["name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp", "ownerReferences"]),
        "spec": {
            "nodeName": spec["nodeName"], "hostNetwork": spec["hostNetwork"], "nodeSelector": spec["nodeSelector"],
            "tolerations": spec["tolerations"], "containers": containers,
        },
        "status": some(status, &["phase", "reason", "conditions", "podIP", "podIPs", "hostIP", "hostIPs", "startTime"]),
    })
}

fn some(of: &Value, names: &[&str]) -> Value {
    let fields = names.iter().filter_map(|name| Some(((*name).to_owned(), of.get(name)?.clone())));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// A text without JSON Web Tokens, as service accounts have, and private keys, wherever they come from.
pub(super) fn text(text: &str) -> String {
    without_keys(&without_tokens(text))
}

/// Three words of base64url between dots, the first of which begins as `{"` does.
fn without_tokens(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("eyJ") {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = from.find(|c: char| !is_word(c) && c != '.').unwrap_or(from.len());
        let (word, behind) = from.split_at(end);
        if word.split('.').filter(|part| !part.is_empty()).count() >= 3 {
            out.push_str(GONE);
        } else {
            out.push_str(word);
        }
        rest = behind;
    }
    out + rest
}

fn without_keys(text: &str) -> String {
    const END: &str = "PRIVATE KEY-----";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ").filter(|at| rest[*at..].find(END).is_some_and(|n| n < 64)) {
        out.push_str(&rest[..at]);
        out.push_str(GONE);
        let from = &rest[at..];
        // Its first line ends so, and its last one.
        let end = from.match_indices(END).nth(1).map_or(from.len(), |(at, _)| at + END.len());
        rest = &from[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_stays_what_a_network_looks_at() {
        let given = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"note": "hunter2"}},
            "spec": {"nodeName": "node-1", "volumes": [{"secret": {"secretName": "hunter2"}}], "containers": [{
                "name": "main", "image": "i", "env": [{"name": "PASSWORD", "value": "hunter2"}], "args": ["--token=hunter2"],
                "command": ["sh", "-c", "hunter2"], "livenessProbe": {"httpGet": {"httpHeaders": [{"value": "hunter2"}]}},
                "ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        let taken = pod(&given);
        assert!(!taken.to_string().contains("hunter2"), "{taken}");
        assert_eq!(taken["spec"]["containers"][0]["ports"], given["spec"]["containers"][0]["ports"]);
        assert_eq!(taken["status"], given["status"]);
        assert_eq!(taken["metadata"]["labels"], json!({"app": "web"}));
    }

    #[test]
    fn of_objects_values_of_the_environment_and_annotations_of_others_go() {
        let given = json!({"items": [{
            "metadata": {"managedFields": [1], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2", "weft.dev/settings": "x"}},
            "spec": {"template": {"spec": {"containers": [{"env": [{"name": "A", "value": "hunter2"}, {"name": "B", "valueFrom": {}}]}]}}},
        }]});
        let taken = object(given);
        assert!(!taken.to_string().contains("hunter2") && !taken.to_string().contains("managedFields"), "{taken}");
        assert_eq!(taken["items"][0]["metadata"]["annotations"], json!({"weft.dev/settings": "x"}));
        assert_eq!(taken["items"][0]["spec"]["template"]["spec"]["containers"][0]["env"][1]["name"], "B");
    }

    #[test]
    fn tokens_and_keys_go_wherever_they_stand() {
        let given = "a Bearer eyJhbGciOi.eyJpc3Mi.c2ln_-0 b eyJust a word, eyJ.";
        assert_eq!(text(given), format!("a Bearer {GONE} b eyJust a word, eyJ."));
        let key =
            "x\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\ny -----BEGIN CERTIFICATE----- z";
        assert_eq!(text(key), format!("x\n{GONE}\ny -----BEGIN CERTIFICATE----- z"));
    }
}
