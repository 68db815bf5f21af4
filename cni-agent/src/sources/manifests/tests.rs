use std::collections::BTreeSet;

use tempfile::TempDir;

use super::*;
use crate::tables::PodKey;

const LONG: Duration = Duration::from_secs(20);

#[test]
fn the_initial_listing_is_in_the_tables_when_the_source_is_synced() {
    let dir = TempDir::new().unwrap();
    write(&dir, "a.yaml", &format!("{}---\n{}", node("n1"), pod("p1", "10.1.0.1")));
    write(&dir, "b.json", r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}"#);
    write(&dir, "c.yml", &node("n3"));
    for ignored in [".d.yaml", "e.txt", "f"] {
        write(&dir, ignored, &node("ignored"));
    }
    fs::create_dir(dir.path().join("g.yaml")).unwrap();
    let (tables, running) = start(dir.path());
    assert!(tables.wait_synced(tables::Source::Cluster, LONG));
    assert_eq!(nodes(&tables), ["n1", "n2", "n3"]);
    assert!(tables.read().pods.contains_key(&PodKey::new("default", "p1")));
    let status = running.report().wait_for(LONG, |s| s.synced).unwrap();
    assert_eq!((status.objects, status.problems, status.name.as_str()), (4, vec![], "manifests"));
}

#[test]
fn a_missing_directory_is_made_and_an_empty_one_is_in_sync() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/manifests");
    let (tables, _running) = start(&path);
    assert!(tables.wait_synced(tables::Source::Cluster, LONG));
    assert!(path.is_dir());
    publish(&path, "a.yaml", &node("n1"));
    assert!(await_nodes(&tables, &["n1"]));
}

#[test]
fn files_that_come_change_and_go_are_followed() {
    let dir = TempDir::new().unwrap();
    let (tables, _running) = start(dir.path());
    publish(dir.path(), "pod.yaml", &pod("p1", "10.1.0.1"));
    assert!(await_ip(&tables, "10.1.0.1"));
    publish(dir.path(), "pod.yaml", &pod("p1", "10.1.0.2"));
    assert!(await_ip(&tables, "10.1.0.2"));
    fs::remove_file(dir.path().join("pod.yaml")).unwrap();
    assert!(tables.wait_for(LONG, |c| c.pods.is_empty().then_some(())).is_some());
}

#[test]
fn a_file_written_in_place_is_followed() {
    let dir = TempDir::new().unwrap();
    write(&dir, "pod.yaml", &pod("p1", "10.1.0.1"));
    let (tables, _running) = start(dir.path());
    assert!(await_ip(&tables, "10.1.0.1"));
    write(&dir, "pod.yaml", &pod("p1", "10.1.0.2"));
    assert!(await_ip(&tables, "10.1.0.2"));
}

#[test]
fn a_renamed_file_changes_nothing() {
    let dir = TempDir::new().unwrap();
    write(&dir, "a.yaml", &node("n1"));
    let (tables, _running) = start(dir.path());
    assert!(await_nodes(&tables, &["n1"]));
    let before = tables.revision();
    fs::rename(dir.path().join("a.yaml"), dir.path().join("b.yaml")).unwrap();
    publish(dir.path(), "z.yaml", &node("n2"));
    assert!(await_nodes(&tables, &["n1", "n2"]));
    assert_eq!(tables.revision().0, before.0 + 1, "only n2 changed");
}

#[test]
fn a_file_that_breaks_keeps_its_objects_until_it_is_mended() {
    let dir = TempDir::new().unwrap();
    write(&dir, "a.yaml", &node("n1"));
    let (tables, running) = start(dir.path());
    assert!(tables.wait_synced(tables::Source::Cluster, LONG));
    publish(dir.path(), "a.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: [\n");
    let status = running.report().wait_for(LONG, |s| !s.problems.is_empty()).unwrap();
    assert!(status.problems[0].starts_with("a.yaml: line ") && status.problems[0].contains("last good"), "{status:?}");
    assert_eq!(nodes(&tables), ["n1"]);
    publish(dir.path(), "a.yaml", &node("n2"));
    assert!(await_nodes(&tables, &["n2"]));
    assert!(running.report().wait_for(LONG, |s| s.problems.is_empty()).is_some());
}

#[test]
fn a_file_that_is_broken_from_the_start_holds_the_sync_mark_back() {
    let dir = TempDir::new().unwrap();
    write(&dir, "a.yaml", &node("n1"));
    write(&dir, "b.yaml", "kind: Node");
    let (tables, running) = start(dir.path());
    let status = running.report().wait_for(LONG, |s| !s.problems.is_empty()).unwrap();
    assert!(!status.synced && !tables.is_synced(tables::Source::Cluster));
    assert_eq!(nodes(&tables), ["n1"]);
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    assert!(tables.wait_synced(tables::Source::Cluster, LONG));
}

#[test]
fn links_that_are_switched_all_at_once_are_followed() {
    // As a mounted ConfigMap does it.
    let dir = TempDir::new().unwrap();
    for (version, name) in [("..1", "n1"), ("..2", "n2")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        write(&dir, &format!("{version}/a.yaml"), &node(name));
    }
    link("..1", &dir.path().join("..data"));
    link("..data/a.yaml", &dir.path().join("a.yaml"));
    let (tables, _running) = start(dir.path());
    assert!(await_nodes(&tables, &["n1"]));
    link("..2", &dir.path().join("..data_tmp"));
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    assert!(await_nodes(&tables, &["n2"]));
}

#[test]
fn a_directory_that_goes_away_takes_no_objects_and_is_followed_when_it_is_back() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("manifests");
    let (tables, running) = start(&path);
    publish(&path, "a.yaml", &node("n1"));
    assert!(await_nodes(&tables, &["n1"]));
    fs::rename(&path, dir.path().join("old")).unwrap();
    let status = running.report().wait_for(LONG, |s| !s.problems.is_empty()).unwrap();
    assert!(status.problems[0].contains("stay in use"), "{status:?}");
    assert_eq!(nodes(&tables), ["n1"]);
    fs::create_dir(&path).unwrap();
    publish(&path, "b.yaml", &node("n2"));
    assert!(await_nodes(&tables, &["n2"]));
    publish(&path, "c.yaml", &node("n3"));
    assert!(await_nodes(&tables, &["n2", "n3"]));
}

#[test]
fn looking_does_not_cause_the_next_look() {
    let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
    let read = EventKind::Access(AccessKind::Close(AccessMode::Read));
    for kind in [opened, read] {
        assert!(meaning(Ok(Event::new(kind))).is_none());
    }
    let written = Event::new(EventKind::Access(AccessKind::Close(AccessMode::Write)));
    assert!(matches!(meaning(Ok(written)), Some(Wake::Look(_))));
}

#[test]
fn a_file_beyond_all_measure_is_refused() {
    let dir = TempDir::new().unwrap();
    write(&dir, "a.yaml", &"#".repeat(usize::try_from(MAX_FILE).unwrap() + 1));
    let error = read_text(&dir.path().join("a.yaml")).unwrap_err();
    assert!(error.to_string().contains("split it"));
}

fn start(directory: &Path) -> (Arc<Tables>, Running) {
    let tables = Arc::new(Tables::new());
    let running = Box::new(ManifestDir::new(directory)).start(Arc::clone(&tables)).unwrap();
    (tables, running)
}
fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).unwrap();
}
/// As the agreement wants it: whole under another name, then renamed.
fn publish(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join(format!(".{name}.new"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, dir.join(name)).unwrap();
}
fn link(to: &str, at: &Path) {
    std::os::unix::fs::symlink(to, at).unwrap();
}
fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}
fn pod(name: &str, ip: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {ip}}}\n")
}
fn nodes(tables: &Tables) -> Vec<String> {
    tables.read().nodes.keys().cloned().collect()
}
fn await_nodes(tables: &Tables, names: &[&str]) -> bool {
    let wanted: BTreeSet<&str> = names.iter().copied().collect();
    let there = |c: &tables::Contents| c.nodes.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted;
    tables.wait_for(LONG, |c| there(c).then_some(())).is_some()
}
fn await_ip(tables: &Tables, ip: &str) -> bool {
    let ip: std::net::IpAddr = ip.parse().unwrap();
    let there = |c: &tables::Contents| c.pods.values().any(|pod| pod.ips == [ip]);
    tables.wait_for(LONG, |c| there(c).then_some(())).is_some()
}
