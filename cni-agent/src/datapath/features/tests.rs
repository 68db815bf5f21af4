use super::*;

/// A kernel that lacks what is named: its attempts are answered by this error, all others as by a kernel that has everything.
fn kernel(release: &str, lacks: &[&str], errno: i32) -> Features {
    Features::of(release.to_owned(), &[], |f| if lacks.contains(&f.name) { Err(errno) } else { fine(f) })
}
fn fine(f: &Feature) -> Result<(), i32> {
    match f.attempt {
        Try::Tcx => Err(libc::ENODEV),
        Try::Batch(kind) if kind != 2 && kind != 6 => Err(libc::ENOENT),
        Try::Veth | Try::Vxlan => Err(libc::EADDRNOTAVAIL),
        Try::SharedBlock => Err(libc::EINVAL),
        _ => Ok(()),
    }
}
/// What a kernel without it answers.
fn refusal(f: &Feature) -> i32 {
    match f.attempt {
        Try::Veth | Try::Vxlan => libc::EOPNOTSUPP,
        Try::SharedBlock => libc::ENOENT,
        Try::Batch(_) | Try::TestRun => NOT_SUPPORTED,
        _ => libc::EINVAL,
    }
}

#[test]
fn a_kernel_that_has_all_is_fit_and_lacks_nothing() {
    let all = kernel("6.18.0", &[], 0);
    assert_eq!((all.check(), all.missing()), (Ok(()), vec![]));
    assert!(all.by_name().values().all(|there| *there));
}

#[test]
fn each_required_feature_that_is_missing_gives_one_sentence_with_its_option() {
    for f in ALL.iter().filter(|f| f.without.is_none()) {
        let said = kernel("6.1.0-9-amd64", &[f.name], refusal(f)).check().expect_err(f.name).to_string();
        let option = format!("CONFIG_{}", f.options[0]);
        assert!(said.starts_with("Linux 6.1.0-9-amd64 lacks what Weft needs: "), "{said}");
        assert!(said.contains(f.what) && said.contains(&option) && !said.contains('\n'), "{}: {said}", f.name);
    }
}

#[test]
fn each_optional_feature_that_is_missing_is_named_with_what_is_done_without_it() {
    for f in ALL.iter().filter(|f| f.without.is_some()) {
        let found = kernel("5.10.0", &[f.name], refusal(f));
        assert_eq!(found.check(), Ok(()), "{}", f.name);
        assert!(!found.has(f.name) && !found.by_name()[f.name], "{}", f.name);
        let missing = found.missing();
        let [one] = &missing[..] else { panic!("{}: {missing:?}", f.name) };
        assert_eq!((one.name.as_str(), one.required, one.why.as_str()), (f.name, false, "missing"));
        assert!(one.origin.contains(f.since) && one.origin.contains("CONFIG_"), "{one:?}");
        assert_eq!(Some(one.without.as_str()), f.without);
    }
}

#[test]
fn a_kernel_below_the_floor_gets_one_clear_sentence() {
    let old = kernel("4.19.0", &["redirect-peer"], libc::EINVAL).check().unwrap_err().to_string();
    assert_eq!(
        old,
        "Linux 4.19.0 is too old for Weft: it lacks the helper bpf_redirect_peer (Linux 5.10). Weft runs on 5.10 and newer."
    );
    let lacks = ["redirect-peer", "redirect-neigh", "ring-buffer", "jiffies64"];
    let old = kernel("5.4.0-42-generic", &lacks, libc::EINVAL).check().unwrap_err().to_string();
    assert!(old.contains("bpf_redirect_neigh (Linux 5.10) and 2 more. Weft"), "{old}");
    // A distribution may have brought it to an older one.
    assert_eq!(kernel("4.18.0-553.el8", &[], 0).check(), Ok(()));
}

#[test]
fn what_is_not_allowed_is_not_taken_for_missing() {
    let everything: Vec<&str> = ALL.iter().map(|f| f.name).collect();
    let forbidden = kernel("6.18.0", &everything, libc::EPERM);
    let said = forbidden.check().unwrap_err().to_string();
    assert!(said.contains("the system call bpf(2) (EPERM)") && said.contains("CAP_BPF"), "{said}");
    assert!(forbidden.missing().iter().all(|m| m.why == "not allowed"));
    let none = kernel("6.18.0", &everything, libc::ENOSYS).check().unwrap_err().to_string();
    assert!(none.contains("the system call bpf(2) (CONFIG_BPF_SYSCALL)"), "{none}");
}

#[test]
fn what_is_unclear_is_not_used_and_hinders_no_start() {
    let found = kernel("6.18.0", &[TCX, "redirect-peer"], libc::ENOMEM);
    assert_eq!((found.check(), found.has(TCX)), (Ok(()), false));
    assert!(found.missing().iter().all(|m| m.why.starts_with("unclear: ")), "{:?}", found.missing());
}

#[test]
fn what_the_settings_switch_off_is_not_used() {
    let found = Features::of("6.18.0".into(), &[TCX.to_owned()], fine);
    assert_eq!((found.has(TCX), found.has(ENCAP_L2_ETH)), (false, true));
    assert_eq!(found.missing()[0].why, "switched off");
    assert!(SWITCHABLE.iter().all(|name| ALL.iter().any(|f| f.name == *name && f.without.is_some())));
}

#[test]
fn every_map_of_ours_is_tried_with_its_type_and_flags() {
    for spec in cni_common::schema::ALL {
        let tried =
            |f: &Feature| matches!(f.attempt, Try::Map(kind, flags) if (kind, flags) == (spec.kind as u32, spec.flags));
        assert!(ALL.iter().any(tried), "{}", spec.name);
    }
}

#[test]
fn names_are_used_once() {
    let names: std::collections::BTreeSet<_> = ALL.iter().map(|f| f.name).collect();
    assert_eq!(names.len(), ALL.len());
}
