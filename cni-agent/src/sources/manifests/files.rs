//! Which file says what, and so what each row is. No I/O: the follower reads, this decides.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use smallvec::SmallVec;

use super::parse::{Object, Parsed};
use crate::tables::{Row, Tables, pods::Pods};

/// The objects of all files.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<Arc<str>, File>,
    /// The files that name a row, by name. Nearly all rows have one.
    owners: BTreeMap<Row, SmallVec<[Arc<str>; 1]>>,
    /// Rows to be published: something about them changed.
    touched: BTreeSet<Row>,
    /// Rows with several owners that were warned of.
    shared: BTreeSet<Row>,
}

#[derive(Debug)]
struct File {
    /// When what `objects` holds was written: the last good state.
    written: SystemTime,
    objects: Objects,
    problem: Option<String>,
    /// Policies in it that are broken, and parts of others that match nothing.
    flaws: Vec<String>,
    /// It was read without an error at least once.
    known: bool,
}

/// What one file names. Its pods are as small as in the tables: there may be a cluster's.
#[derive(Debug, Default)]
struct Objects {
    pods: Pods,
    others: BTreeMap<Row, Object>,
}

impl Objects {
    /// Takes an object in, in the place of an earlier one of its name; its row, and whether there was one.
    fn put(&mut self, object: Object) -> (Row, bool) {
        if let Object::Pod(pod) = object {
            let before = self.pods.len();
            let (key, _) = self.pods.set(&pod);
            return (Row::Pod(key), self.pods.len() == before);
        }
        let row = object.row();
        let replaced = self.others.insert(row.clone(), object).is_some();
        (row, replaced)
    }
    fn get(&self, row: &Row) -> Option<Object> {
        match row {
            Row::Pod(key) => self.pods.get(key).map(Object::Pod),
            _ => self.others.get(row).cloned(),
        }
    }
    fn rows(&self) -> impl Iterator<Item = Row> {
        self.pods.keys().cloned().map(Row::Pod).chain(self.others.keys().cloned())
    }
    fn len(&self) -> usize {
        self.pods.len() + self.others.len()
    }
}

impl Files {
    /// A file was read: what it names now replaces what it named before.
    pub fn good(&mut self, name: &str, written: SystemTime, parsed: Parsed) {
        if self.files.get(name).is_some_and(|file| file.problem.is_some()) {
            tracing::info!(file = name, "manifest file can be read again");
        }
        let mut named = Objects::default();
        let mut problem = None;
        let mut flaws = Vec::new();
        for object in parsed.objects {
            if let Object::Policy(read) = &object {
                let of = &read.policy.name;
                flaws.extend(read.flaws.iter().map(|flaw| format!("{name}: {of}, field {}", flaw.in_full())));
            }
            if let (row, true) = named.put(object) {
                problem = Some(format!("{name}: it has {row} twice; the later one counts: remove the other"));
            }
        }
        for (line, policy, broken) in parsed.broken {
            // What it said last is what it says, as it is with whole files.
            let row = policy.map(|name| Row::Policy(name.into())).filter(|row| named.get(row).is_none());
            let before = row.and_then(|row| self.files.get(name)?.objects.get(&row));
            let kept = if before.is_some() { "it stays in force as it was" } else { "it is not in force" };
            before.into_iter().for_each(|object| drop(named.put(object)));
            flaws.push(format!("{name}: document at line {line}: {broken}; {kept}: correct it"));
        }
        let said = self.files.get(name).map_or(&[][..], |file| &file.flaws);
        for flaw in flaws.iter().filter(|flaw| !said.contains(flaw)) {
            tracing::warn!(file = name, flaw, "policy is not as it should be");
        }
        if let Some(problem) = &problem {
            tracing::warn!(file = name, problem, "manifest file contradicts itself");
        }
        self.drop_objects(name);
        named.pods.pack();
        let name: Arc<str> = name.into();
        for row in named.rows() {
            self.owners.entry(row.clone()).or_default().push(Arc::clone(&name));
            self.touched.insert(row);
        }
        self.files.insert(name, File { written, objects: named, problem, flaws, known: true });
    }

    /// A file could not be read or does not parse: its last good objects stay.
    pub fn bad(&mut self, name: &str, cause: &str) {
        let file = self.files.entry(name.into()).or_insert_with(|| File {
            written: SystemTime::UNIX_EPOCH,
            objects: Objects::default(),
            problem: None,
            flaws: Vec::new(),
            known: false,
        });
        let kept = match file.objects.len() {
            0 => "nothing of it is used".to_owned(),
            n => format!("its last good content stays in use ({n} objects)"),
        };
        let problem = format!("{name}: {cause}; {kept}: correct the file or remove it");
        if file.problem.as_ref() != Some(&problem) {
            tracing::warn!(file = name, cause, kept, "manifest file is not usable");
            file.problem = Some(problem);
        }
    }

    /// A file is gone, and its objects with it.
    pub fn removed(&mut self, name: &str) {
        self.drop_objects(name);
        self.files.remove(name);
    }

    fn drop_objects(&mut self, name: &str) {
        let Some(file) = self.files.get_mut(name) else { return };
        for row in std::mem::take(&mut file.objects).rows() {
            if let Some(owners) = self.owners.get_mut(&row) {
                owners.retain(|owner| **owner != *name);
                if owners.is_empty() {
                    self.owners.remove(&row);
                }
            }
            self.touched.insert(row);
        }
    }

    /// Brings the tables up to date, row by row. Call it after all files of a look were taken in, so that an object that
    /// moved from one file to another never goes missing between.
    pub fn publish(&mut self, tables: &Tables) {
        for row in std::mem::take(&mut self.touched) {
            match self.winner(&row).and_then(|(_, file)| file.objects.get(&row)) {
                Some(Object::Node(node)) => tables.set_node(node),
                Some(Object::Namespace(namespace)) => tables.set_namespace(namespace),
                Some(Object::Pod(pod)) => tables.set_pod(pod),
                Some(Object::Policy(read)) => tables.set_policy(*read),
                Some(Object::ServiceCidr(of)) => tables.set_service_cidr(of),
                None => match &row {
                    Row::Node(name) => tables.remove_node(name),
                    Row::Namespace(name) => tables.remove_namespace(name),
                    Row::Pod(key) => tables.remove_pod(key),
                    Row::Policy(name) => tables.remove_policy(name),
                    Row::ServiceCidr(name) => tables.remove_service_cidr(name),
                    // No object of a file names another row.
                    _ => continue,
                },
            };
            if self.owners.get(&row).is_none_or(|owners| owners.len() < 2) {
                self.shared.remove(&row);
            } else if self.shared.insert(row.clone()) {
                tracing::warn!(problem = self.shared_problem(&row), "two manifest files name one object");
            }
        }
    }

    /// The file that was written last counts; of two written at one time, the one whose name sorts last. Both are read
    /// from the files, so that a restarted agent decides alike.
    fn winner(&self, row: &Row) -> Option<(&str, &File)> {
        let owners = self.owners.get(row)?.iter();
        let files = owners.filter_map(|name| self.files.get(name).map(|file| (&**name, file)));
        files.max_by_key(|(name, file)| (file.written, *name))
    }

    fn shared_problem(&self, row: &Row) -> String {
        let mut owners: Vec<&str> = self.owners.get(row).into_iter().flatten().map(|name| &**name).collect();
        owners.sort_unstable();
        let counts = self.winner(row).map_or("none", |(name, _)| name);
        format!("{row} is in {}; {counts} was written last and counts: remove it from the others", owners.join(", "))
    }

    /// What is wrong now, in order.
    pub fn problems(&self) -> Vec<String> {
        let files = self.files.values().flat_map(|file| file.problem.iter().chain(&file.flaws).cloned());
        files.chain(self.shared.iter().map(|row| self.shared_problem(row))).collect()
    }
    /// Objects that the files name.
    pub fn count(&self) -> usize {
        self.owners.len()
    }
    /// Whether every file that is there was once read without an error: only then is it known what is *not* wanted.
    pub fn complete(&self) -> bool {
        self.files.values().all(|file| file.known)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tables::Node;

    #[test]
    fn a_removed_file_removes_its_objects() {
        let (mut files, tables) = both();
        files.good("a.yaml", at(1), nodes([node("n1", 1), node("n2", 1)]));
        files.publish(&tables);
        assert_eq!(names(&tables), ["n1", "n2"]);
        files.removed("a.yaml");
        files.publish(&tables);
        assert_eq!((names(&tables), files.count()), (vec![], 0));
    }

    #[test]
    fn an_object_that_a_file_no_longer_names_is_removed_and_equal_ones_do_not_change() {
        let (mut files, tables) = both();
        files.good("a.yaml", at(1), nodes([node("n1", 1), node("n2", 1)]));
        files.publish(&tables);
        let before = tables.revision();
        files.good("a.yaml", at(2), nodes([node("n2", 1)]));
        files.publish(&tables);
        assert_eq!(names(&tables), ["n2"]);
        assert_eq!(tables.revision().0, before.0 + 1);
    }

    #[test]
    fn an_object_that_moves_to_another_file_does_not_go_missing() {
        let (mut files, tables) = both();
        files.good("a.yaml", at(1), nodes([node("n1", 1)]));
        files.publish(&tables);
        let before = tables.revision();
        files.removed("a.yaml");
        files.good("b.yaml", at(1), nodes([node("n1", 1)]));
        files.publish(&tables);
        assert_eq!(tables.revision(), before);
        assert_eq!(files.problems(), [""; 0]);
    }

    #[test]
    fn of_two_files_the_one_written_last_counts_and_the_other_takes_over_when_it_goes() {
        let (mut files, tables) = both();
        files.good("b.yaml", at(1), nodes([node("n1", 1)]));
        files.good("a.yaml", at(2), nodes([node("n1", 2)]));
        files.publish(&tables);
        assert_eq!(internal_ip(&tables, "n1"), 2);
        let problem = "node n1 is in a.yaml, b.yaml; a.yaml was written last and counts: remove it from the others";
        assert_eq!(files.problems(), [problem]);
        files.removed("a.yaml");
        files.publish(&tables);
        assert_eq!(internal_ip(&tables, "n1"), 1);
        assert_eq!(files.problems(), [""; 0]);
    }

    #[test]
    fn of_two_files_written_at_one_time_the_name_decides_in_any_order_of_reading() {
        for order in [["a.yaml", "b.yaml"], ["b.yaml", "a.yaml"]] {
            let (mut files, tables) = both();
            for name in order {
                files.good(name, at(1), nodes([node("n1", name.as_bytes()[0])]));
                files.publish(&tables);
            }
            assert_eq!(internal_ip(&tables, "n1"), b'b');
        }
    }

    #[test]
    fn a_file_that_breaks_keeps_its_last_good_objects_and_says_so() {
        let (mut files, tables) = both();
        files.good("a.yaml", at(1), nodes([node("n1", 1)]));
        files.bad("a.yaml", "line 3: no");
        files.publish(&tables);
        assert_eq!(names(&tables), ["n1"]);
        let problem =
            "a.yaml: line 3: no; its last good content stays in use (1 objects): correct the file or remove it";
        assert_eq!(files.problems(), [problem]);
        assert!(files.complete());
        files.good("a.yaml", at(2), nodes([node("n1", 1)]));
        assert_eq!(files.problems(), [""; 0]);
    }

    #[test]
    fn a_file_that_was_never_read_leaves_the_picture_incomplete() {
        let (mut files, _) = both();
        files.bad("a.yaml", "line 1: no");
        assert!(!files.complete());
        files.removed("a.yaml");
        assert!(files.complete());
    }

    #[test]
    fn an_object_twice_in_one_file_is_a_problem_and_the_later_one_counts() {
        let (mut files, tables) = both();
        files.good("a.yaml", at(1), nodes([node("n1", 1), node("n1", 2)]));
        files.publish(&tables);
        assert_eq!(internal_ip(&tables, "n1"), 2);
        assert_eq!(files.problems(), ["a.yaml: it has node n1 twice; the later one counts: remove the other"]);
    }

    #[test]
    fn a_policy_that_breaks_stays_in_force_as_it_was_and_a_new_one_is_not() {
        let (mut files, tables) = both();
        let file = |spec: &str| {
            let text = format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: a, name: p}}\nspec: {spec}\n"
            );
            crate::sources::manifests::parse::objects(&text).expect("it is YAML")
        };
        files.good("a.yaml", at(1), file("{podSelector: 5}"));
        files.publish(&tables);
        assert!(tables.read().policies.is_empty() && files.complete());
        assert!(files.problems()[0].contains("NetworkPolicy a/p, field spec.podSelector"), "{:?}", files.problems());
        assert!(files.problems()[0].ends_with("it is not in force: correct it"));
        files.good("a.yaml", at(2), file("{podSelector: {}}"));
        files.publish(&tables);
        assert_eq!((tables.read().policies.len(), files.problems()), (1, vec![]));
        let before = tables.revision();
        files.good("a.yaml", at(3), file("{podSelector: 5}"));
        files.publish(&tables);
        assert_eq!(tables.revision(), before);
        assert!(files.problems()[0].ends_with("it stays in force as it was: correct it"));
        files.good("a.yaml", at(4), file("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: x}}]}]}"));
        files.publish(&tables);
        assert!(files.problems()[0].ends_with("this part matches nothing"), "{:?}", files.problems());
        files.removed("a.yaml");
        files.publish(&tables);
        assert!(tables.read().policies.is_empty() && files.problems().is_empty());
    }

    #[test]
    fn pods_are_kept_as_other_objects_are() {
        let (mut files, tables) = both();
        let file = |labels: &[&str]| {
            let pod = |app: &&str| {
                format!(
                    r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"namespace":"a","name":"p","labels":{{"app":"{app}"}}}}}}"#
                )
            };
            let items: Vec<String> = labels.iter().map(pod).collect();
            let text = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, items.join(","));
            crate::sources::manifests::parse::objects(&text).expect("it is JSON")
        };
        let app = |tables: &Tables| tables.read().pods.values().next().map(|pod| pod.labels["app"].clone());
        files.good("a.json", at(1), file(&["one", "two"]));
        files.good("b.json", at(2), file(&["three"]));
        files.publish(&tables);
        assert_eq!((app(&tables).as_deref(), files.count()), (Some("three"), 1));
        assert_eq!(
            files.problems(),
            [
                "a.json: it has pod a/p twice; the later one counts: remove the other",
                "pod a/p is in a.json, b.json; b.json was written last and counts: remove it from the others",
            ]
        );
        files.removed("b.json");
        files.publish(&tables);
        assert_eq!(app(&tables).as_deref(), Some("two"));
        files.removed("a.json");
        files.publish(&tables);
        assert_eq!((app(&tables), files.count(), files.problems()), (None, 0, vec![]));
    }

    fn both() -> (Files, Tables) {
        (Files::default(), Tables::new())
    }
    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }
    fn nodes<const N: usize>(objects: [Object; N]) -> Parsed {
        Parsed { objects: objects.into(), broken: Vec::new() }
    }
    fn node(name: &str, v: u8) -> Object {
        let internal_ips = vec![[10, 0, 0, v].into()];
        Object::Node(Node {
            name: name.into(),
            pod_cidrs: vec![],
            internal_ips,
            labels: BTreeMap::new(),
            addresses: BTreeSet::new(),
        })
    }
    fn names(tables: &Tables) -> Vec<String> {
        tables.read().nodes.keys().cloned().collect()
    }
    fn internal_ip(tables: &Tables, name: &str) -> u8 {
        match tables.read().nodes[name].internal_ips[0] {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => panic!("the tests use IPv4"),
        }
    }
}
