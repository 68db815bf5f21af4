use std::{io::Write, process::Command as Process};

use clap::CommandFactory;
use tempfile::NamedTempFile;

use super::*;

const NAME: &str = "weft-agent";

#[test]
fn the_definition_of_the_flags_is_consistent() {
    Settings::command().debug_assert();
}

#[test]
fn everything_has_a_working_default() {
    let settings = Settings::from_args([NAME, "--node-name", "node-1"]).unwrap();
    let expected = Settings {
        config: None,
        node_name: "node-1".into(),
        source: SourceKind::Manifests,
        kube_api: vec![],
        kubeconfig: None,
        kubelet_kubeconfig: "/etc/kubernetes/kubelet.conf".into(),
        manifests: "/etc/weft/manifests".into(),
        cluster_cidr: vec![],
        service_cidr: vec![],
        cache_dir: "/var/lib/weft".into(),
        state_dir: "/run/weft/state".into(),
        run_dir: "/run/weft".into(),
        bpffs: "/sys/fs/bpf".into(),
        cni_install: YesNo::Yes,
        cni_bin_dir: "/opt/cni/bin".into(),
        cni_conf_dir: "/etc/cni/net.d".into(),
        cni_conf_name: "05-weft.conflist".into(),
        device: vec![],
        underlay: Underlay::Auto,
        tunnel_port: 8472,
        mtu: 0,
        masquerade: YesNo::Yes,
        masquerade_ports: PortRange::new(61_000, 65_535).unwrap(),
        reserved_ports_file: "/proc/sys/net/ipv4/ip_local_reserved_ports".into(),
        no_masquerade_cidr: vec![],
        without: vec![],
        metrics_address: None,
        event_rate: 100,
        verify_every: 300,
        log_format: LogFormat::Text,
        log_level: "info".into(),
        bpf_object: None,
        die_at: None,
    };
    assert_eq!(settings, expected);
}

#[test]
fn every_setting_has_its_flag_its_variable_and_a_help_text() {
    for arg in Settings::command().get_arguments().filter(|a| !a.is_hide_set()) {
        let flag = arg.get_long().expect("a long flag");
        let variable = format!("WEFT_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(variable.as_str()));
        assert!(arg.get_help().is_some(), "{flag} has no help");
    }
    let help = Settings::command().render_long_help().to_string();
    for part in [
        "Precedence:",
        "Files:",
        "Exit status:",
        "Examples:",
        "WEFT_TUNNEL_PORT",
        "Cluster:",
        "Network:",
        "Masquerade:",
    ] {
        assert!(help.contains(part), "{part} is missing in\n{help}");
    }
}

#[test]
fn every_setting_can_stand_in_the_file() {
    let settings = load_file(
        r#"
        node-name = "n"
        source = "kube"
        kube-api = ["https://192.0.2.1:6443/", "https://[fd00::1]:6443"]
        kubeconfig = "/k"
        kubelet-kubeconfig = "/l"
        cache-dir = "/v"
        manifests = "/m"
        cluster-cidr = ["10.0.0.0/8", "fd00::/48"]
        state-dir = "/s"
        run-dir = "/r"
        bpffs = "/b"
        cni-install = "no"
        cni-bin-dir = "/c"
        cni-conf-dir = "/d"
        cni-conf-name = "20-weft.conflist"
        device = "eth1"
        underlay = "ipv6"
        tunnel-port = 4789
        mtu = 9000
        masquerade = false
        masquerade-ports = "50000-50999"
        reserved-ports-file = "/x"
        no-masquerade-cidr = ["172.16.0.0/12"]
        service-cidr = ["172.30.0.0/16"]
        without = ["tcx"]
        metrics-address = ":9810"
        event-rate = 0
        verify-every = 10
        log-format = "json"
        log-level = "warn,cni_agent=trace"
        "#,
        &[],
    )
    .unwrap();
    let expected = Settings {
        config: settings.config.clone(),
        node_name: "n".into(),
        source: SourceKind::Kube,
        kube_api: vec!["https://192.0.2.1:6443".into(), "https://[fd00::1]:6443".into()],
        kubeconfig: Some("/k".into()),
        kubelet_kubeconfig: "/l".into(),
        manifests: "/m".into(),
        cluster_cidr: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap()],
        service_cidr: vec!["172.30.0.0/16".parse().unwrap()],
        cache_dir: "/v".into(),
        state_dir: "/s".into(),
        run_dir: "/r".into(),
        bpffs: "/b".into(),
        cni_install: YesNo::No,
        cni_bin_dir: "/c".into(),
        cni_conf_dir: "/d".into(),
        cni_conf_name: "20-weft.conflist".into(),
        device: vec!["eth1".into()],
        underlay: Underlay::Ipv6,
        tunnel_port: 4789,
        mtu: 9000,
        masquerade: YesNo::No,
        masquerade_ports: PortRange::new(50_000, 50_999).unwrap(),
        reserved_ports_file: "/x".into(),
        no_masquerade_cidr: vec!["172.16.0.0/12".parse().unwrap()],
        without: vec!["tcx".into()],
        metrics_address: Some("[::]:9810".parse().unwrap()),
        event_rate: 0,
        verify_every: 10,
        log_format: LogFormat::Json,
        log_level: "warn,cni_agent=trace".into(),
        bpf_object: None,
        die_at: None,
    };
    assert_eq!(settings, expected);
}

#[test]
fn servers_of_the_kubernetes_api_are_for_its_source_only() {
    let given = |args: &[&str]| Settings::from_args([&[NAME, "--node-name", "n"], args].concat()).map(|s| s.kube_api);
    let error = given(&["--kube-api", "https://192.0.2.1:6443"]).unwrap_err().to_string();
    assert!(error.contains("--source kube"), "{error}");
    assert_eq!(
        given(&["--source", "kube", "--kube-api", "https://a:1,https://b:2"]).unwrap(),
        ["https://a:1", "https://b:2"]
    );
    for wrong in ["192.0.2.1:6443", "https://", "ftp://a", "https://a/path"] {
        assert!(given(&["--source", "kube", "--kube-api", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn metrics_are_served_where_one_can_listen() {
    let given =
        |a: &str| Settings::from_args([NAME, "--node-name", "n", "--metrics-address", a]).map(|s| s.metrics_address);
    for (text, address) in [(":9810", "[::]:9810"), ("127.0.0.1:1", "127.0.0.1:1"), ("[::1]:9", "[::1]:9")] {
        assert_eq!(given(text).unwrap(), Some(address.parse().unwrap()), "{text}");
    }
    for wrong in ["9810", "localhost:9810", ":0", "10.0.0.1"] {
        assert!(given(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_flag_goes_before_the_file_and_replaces_its_lists() {
    let file = "mtu = 9000\ntunnel-port = 1\ndevice = [\"eth0\", \"eth1\"]";
    let settings = load_file(file, &["--mtu", "1400", "--device", "wan0"]).unwrap();
    assert_eq!((settings.mtu, settings.tunnel_port, settings.device), (1400, 1, vec!["wan0".to_owned()]));
}

/// The environment belongs to the process, so the test runs itself again with one of its own.
#[test]
fn the_environment_goes_before_the_file_and_after_the_flags() {
    let file = file("mtu = 9000\ntunnel-port = 1\nevent-rate = 5\ncluster-cidr = [\"10.0.0.0/8\"]");
    let output = Process::new(std::env::current_exe().unwrap())
        .args(["settings::tests::prints_what_the_environment_gives", "--exact", "--ignored", "--nocapture"])
        .env("WEFT_CONFIG", file.path())
        .env("WEFT_MTU", "1500")
        .env("WEFT_TUNNEL_PORT", "2")
        .env("WEFT_CLUSTER_CIDR", "10.1.0.0/16,fd00::/64")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("SETTINGS 1400 2 5 [10.1.0.0/16, fd00::/64]"), "{text}");
}

#[test]
#[ignore = "the child of the test above"]
fn prints_what_the_environment_gives() {
    let s = Settings::from_args([NAME, "--mtu", "1400", "--node-name", "n"]).unwrap();
    println!("\nSETTINGS {} {} {} {:?}", s.mtu, s.tunnel_port, s.event_rate, s.cluster_cidr);
}

#[test]
fn an_unknown_key_is_refused_with_the_file_and_the_valid_keys() {
    for key in ["mtv = 1", "config = \"/x\"", "tunnel_port = 1", "help = true", "[mtv]"] {
        let error = load_file(key, &[]).unwrap_err();
        let SettingsError::UnknownKey { path, valid, .. } = &error else { panic!("{error}") };
        assert!(error.to_string().contains(&path.display().to_string()));
        assert!(valid.contains("tunnel-port, mtu,") && valid.split(", ").all(|k| k != "config"), "{valid}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_key_file_and_valid_keys() {
    let cases = [
        ("mtu = \"9000\"", "key `mtu`", "expected an integer, found string"),
        ("mtu = 9000.0", "key `mtu`", "expected an integer, found float"),
        ("underlay = 4", "key `underlay`", "expected a string, found integer"),
        ("underlay = true", "key `underlay`", "expected a string, found boolean"),
        ("masquerade = 1", "key `masquerade`", "expected a string, found integer"),
        ("masquerade-ports = 61000", "key `masquerade-ports`", "expected a string, found integer"),
        ("manifests = [\"/m\"]", "key `manifests`", "expected a string, found array"),
        ("device = [1]", "key `device`", "expected an array of strings, found array"),
        ("[run-dir]\nx = 1", "key `run-dir`", "expected a string, found table"),
    ];
    for (text, key, types) in cases {
        let error = load_file(text, &[]).unwrap_err();
        let SettingsError::WrongType { path, .. } = &error else { panic!("{error}") };
        let message = error.to_string();
        for part in [key, types, &path.display().to_string(), "valid keys are: node-name"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }
}

#[test]
fn a_value_that_the_setting_refuses_is_named_with_its_cause() {
    let cases = [
        ("mtu = 100", "1350 to 65535"),
        ("mtu = -1", "1350 to 65535"),
        ("tunnel-port = 0", "1..=65535"),
        ("tunnel-port = 70000", "1..=65535"),
        ("underlay = \"ipx\"", "valid are auto, ipv4, ipv6"),
        ("cluster-cidr = [\"10.0.0.0/8\", \"10.1.2.3/8\"]", "perhaps 10.0.0.0/8"),
        ("cluster-cidr = [\"ten\"]", "CIDR notation"),
        ("device = [\"a-name-that-is-too-long\"]", "1 to 15 characters"),
        ("node-name = \"Node_1\"", "a-z, 0-9"),
        ("node-name = \"\"", "must have a name"),
        ("cni-install = \"maybe\"", "valid are yes, no"),
        ("masquerade = \"sometimes\"", "valid are yes, no"),
        ("masquerade-ports = \"65535-61000\"", "range of ports such as 61000-65535"),
        ("masquerade-ports = \"61000-70000\"", "range of ports such as 61000-65535"),
        ("masquerade-ports = \"80-90\"", "begin at 1024"),
        ("no-masquerade-cidr = [\"10.0.0.1/8\"]", "perhaps 10.0.0.0/8"),
        ("service-cidr = [\"10.96.0.1/12\"]", "perhaps 10.96.0.0/12"),
        ("cni-conf-name = \"weft.conf\"", "ends in .conflist"),
        ("cni-conf-name = \"../weft.conflist\"", "without a directory"),
        ("cni-conf-name = \".weft.conflist\"", "a file's name"),
        ("log-level = \"cni_agent=loud\"", "a filter is a level"),
    ];
    for (text, cause) in cases {
        let error = load_file(text, &[]).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, SettingsError::BadValue { .. }), "{message}");
        assert!(message.contains(cause) && message.contains(text.split(' ').next().unwrap()), "{message}");
    }
}

#[test]
fn yes_and_no_may_be_true_and_false() {
    for (word, want) in [("true", YesNo::Yes), ("\"yes\"", YesNo::Yes), ("false", YesNo::No), ("\"no\"", YesNo::No)] {
        let settings = load_file(&format!("masquerade = {word}\ncni-install = {word}"), &[]).unwrap();
        assert_eq!((settings.masquerade, settings.cni_install), (want, want), "{word}");
    }
}

#[test]
fn an_address_is_a_pods_or_a_services() {
    let given = |service| load_file(&format!("cluster-cidr = [\"10.0.0.0/9\"]\nservice-cidr = [\"{service}\"]"), &[]);
    for service in ["10.96.0.0/12", "10.0.0.0/8"] {
        let error = given(service).unwrap_err().to_string();
        assert!(error.contains("overlaps --cluster-cidr 10.0.0.0/9: give the API server's"), "{error}");
    }
    given("10.128.0.0/12").unwrap();
}

#[test]
fn more_cidrs_than_the_map_holds_are_refused_with_the_cure() {
    let cidrs: Vec<String> = (0..1001).map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256)).collect();
    let error = load_file(&format!("no-masquerade-cidr = [{}]", cidrs.join(",")), &[]).unwrap_err().to_string();
    assert!(error.contains("1001 networks, and 1000 is the most: join"), "{error}");
    load_file(&format!("no-masquerade-cidr = [{}]", cidrs[1..].join(",")), &[]).unwrap();
}

#[test]
fn a_bad_flag_is_refused_by_name() {
    for (line, part) in [(["--mtu", "100"], "--mtu"), (["--mtv", "1"], "--mtv"), (["--underlay", "x"], "--underlay")] {
        let error = Settings::from_args([NAME, line[0], line[1]]).unwrap_err();
        assert!(matches!(error, SettingsError::Usage(_)) && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = Settings::from_args([NAME, "--config", "/nonexistent/weft.toml"]).unwrap_err();
    assert!(matches!(missing, SettingsError::Read { .. }) && missing.to_string().contains("/nonexistent/weft.toml"));
    let broken = load_file("# fine\nmtu = \n", &[]).unwrap_err();
    let text = broken.to_string();
    assert!(matches!(broken, SettingsError::Toml { line: 2, .. }) && !text.contains('\n'), "{text}");
}

#[test]
fn the_tunnel_address_is_of_the_family_asked_for() {
    let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    assert_eq!(Underlay::Auto.tunnel_address(&[v6, v4]), Some(v4));
    assert_eq!(Underlay::Auto.tunnel_address(&[v6]), Some(v6));
    assert_eq!(Underlay::Ipv6.tunnel_address(&[v4, v6]), Some(v6));
    assert_eq!(Underlay::Ipv4.tunnel_address(&[v6]), None);
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}
fn load_file(text: &str, flags: &[&str]) -> Result<Settings, SettingsError> {
    let file = file(text);
    let path = file.path().display().to_string();
    Settings::from_args([NAME, "--config", &path].iter().chain(flags))
}
