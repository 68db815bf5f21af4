//! What the runtime says in the environment (specification section 2, "Parameters").
use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use super::error::{CniError, ErrorCode, short};

/// The longest name of a network interface, in bytes: the kernel's `IFNAMSIZ` less the closing zero.
const MAX_IFNAME: usize = 15;

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Look whether a container is still connected as it should be.
    Check,
    /// Remove what belongs to containers that are gone.
    Gc,
    /// Say whether ADD would be served.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Command {
    /// As it stands in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Reads `CNI_COMMAND`.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_ENVIRONMENT`] when it is missing or not a command.
    pub fn from_env(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        const ALL: [Command; 6] =
            [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];
        let command = required(env, "CNI_COMMAND", "this program is run by a container runtime, not by hand")?;
        ALL.into_iter().find(|c| c.as_str() == command).ok_or_else(|| {
            wrong("CNI_COMMAND", &command, &format!("it must be one of {}", ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// The parameters of ADD and DEL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: an absolute path; empty when DEL came without one.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`, without `IgnoreUnknown`.
    pub args: BTreeMap<String, String>,
    /// `CNI_PATH`: the directories of plugins.
    pub path: Vec<PathBuf>,
}

impl Parameters {
    /// Reads and checks what ADD needs.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_ENVIRONMENT`], with the variable's name in the message.
    pub fn for_add(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let netns = required(env, "CNI_NETNS", "the runtime must make the network namespace before ADD")?;
        validate_netns(&netns)?;
        let args = parse_args(&optional(env, "CNI_ARGS")?.unwrap_or_default())?;
        Self::of_attachment(env, netns, args)
    }

    /// Reads and checks what DEL needs. DEL has to clean up as much as it can, so a namespace that cannot be used and
    /// arguments that cannot be read count as absent.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_ENVIRONMENT`], with the variable's name in the message.
    pub fn for_del(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let text = |name| optional(env, name).ok().flatten().unwrap_or_default();
        let netns = Some(text("CNI_NETNS")).filter(|netns| validate_netns(netns).is_ok()).unwrap_or_default();
        let args = parse_args(&text("CNI_ARGS")).unwrap_or_default();
        Self::of_attachment(env, netns, args)
    }

    fn of_attachment(
        env: &dyn Fn(&str) -> Option<OsString>,
        netns: String,
        args: BTreeMap<String, String>,
    ) -> Result<Self, CniError> {
        let container_id = required(env, "CNI_CONTAINERID", "the runtime must name the container")?;
        validate_container_id(&container_id)?;
        let ifname = required(env, "CNI_IFNAME", "the runtime must name the interface, usually eth0")?;
        validate_ifname(&ifname)?;
        Ok(Self { container_id, netns, ifname, args, path: plugin_path(env) })
    }
}

/// `CNI_PATH`: the directories of plugins. Every verb may have it.
pub fn plugin_path(env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    env("CNI_PATH").map(|list| std::env::split_paths(&list).collect()).unwrap_or_default()
}

/// Checks a container id against the specification's pattern.
///
/// # Errors
/// [`ErrorCode::INVALID_ENVIRONMENT`].
pub fn validate_container_id(id: &str) -> Result<(), CniError> {
    if is_name(id) { Ok(()) } else { Err(wrong("CNI_CONTAINERID", id, NAME_RULE)) }
}

/// Checks a network's name against the specification's pattern.
///
/// # Errors
/// [`ErrorCode::INVALID_CONFIG`].
pub fn validate_network_name(name: &str) -> Result<(), CniError> {
    if is_name(name) {
        return Ok(());
    }
    Err(CniError::new(ErrorCode::INVALID_CONFIG, format!("the network's name {:?} is not valid", short(name)))
        .with_details(NAME_RULE))
}

/// Checks the name of an interface against the rules of specification and kernel.
///
/// # Errors
/// [`ErrorCode::INVALID_ENVIRONMENT`].
pub fn validate_ifname(name: &str) -> Result<(), CniError> {
    let rule = if name.is_empty() || name.len() > MAX_IFNAME {
        "it must have 1 to 15 bytes"
    } else if name == "." || name == ".." {
        "it must not be . or .."
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        "it must hold no slash, colon, whitespace or control character"
    } else {
        return Ok(());
    };
    Err(wrong("CNI_IFNAME", name, rule))
}

/// Checks that a namespace is given by an absolute path, as the agent does not run in the runtime's directory.
///
/// # Errors
/// [`ErrorCode::INVALID_ENVIRONMENT`].
pub fn validate_netns(path: &str) -> Result<(), CniError> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(());
    }
    Err(wrong("CNI_NETNS", path, "it must be an absolute path of a network namespace, such as /run/netns/NAME"))
}

/// Reads `CNI_ARGS`: pairs `KEY=VALUE` with semicolons between. By convention an unknown key is an error unless
/// `IgnoreUnknown` is set; Weft knows the keys that Kubernetes' runtimes send. What is ignored on request still stands
/// in the answer, for the agent to show.
///
/// # Errors
/// [`ErrorCode::INVALID_ENVIRONMENT`].
pub fn parse_args(args: &str) -> Result<BTreeMap<String, String>, CniError> {
    const KNOWN: [&str; 4] = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"];
    let mut pairs = BTreeMap::new();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| wrong("CNI_ARGS", pair, "it must be pairs KEY=VALUE with semicolons between"))?;
        pairs.insert(key.to_owned(), value.to_owned());
    }
    let ignore_unknown =
        pairs.remove("IgnoreUnknown").is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "t"));
    if let Some(key) = pairs.keys().find(|key| !ignore_unknown && !KNOWN.contains(&key.as_str())) {
        return Err(wrong("CNI_ARGS", key, "this key is not known; add IgnoreUnknown=1 if it may be ignored"));
    }
    Ok(pairs)
}

const NAME_RULE: &str =
    "it must start with an ASCII letter or digit, followed by letters, digits, underscores, dots and hyphens only";

/// The specification's pattern for names of containers and networks.
fn is_name(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn optional(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, CniError> {
    env(name)
        .filter(|value| !value.is_empty())
        .map(|value| value.into_string())
        .transpose()
        .map_err(|value| wrong(name, &value.to_string_lossy(), "it is not UTF-8"))
}

fn required(env: &dyn Fn(&str) -> Option<OsString>, name: &str, cure: &str) -> Result<String, CniError> {
    optional(env, name)?.ok_or_else(|| {
        CniError::new(ErrorCode::INVALID_ENVIRONMENT, format!("the environment variable {name} is missing or empty"))
            .with_details(cure)
    })
}

fn wrong(name: &str, value: &str, rule: &str) -> CniError {
    CniError::new(
        ErrorCode::INVALID_ENVIRONMENT,
        format!("the environment variable {name} is not valid: {:?}", short(value)),
    )
    .with_details(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 6] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "0a1b_2.c-3"),
        ("CNI_NETNS", "/run/netns/blue"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;FOO=a=b"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];

    #[test]
    fn reads_what_a_runtime_sets() {
        let p = Parameters::for_add(&env(&GOOD, &[])).unwrap();
        assert_eq!((p.container_id.as_str(), p.netns.as_str(), p.ifname.as_str()), ("0a1b_2.c-3", GOOD[2].1, "eth0"));
        assert_eq!(p.args["K8S_POD_NAME"], "web");
        assert_eq!(p.args["FOO"], "a=b");
        assert!(!p.args.contains_key("IgnoreUnknown"));
        assert_eq!(p.path, ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from));
        assert_eq!(Command::from_env(&env(&GOOD, &[])), Ok(Command::Add));
    }

    #[test]
    fn args_and_path_may_be_absent() {
        let p = Parameters::for_add(&env(&GOOD, &[("CNI_ARGS", ""), ("CNI_PATH", "")])).unwrap();
        assert!(p.args.is_empty());
    }

    #[test]
    fn a_wrong_variable_is_named_with_code_4() {
        let long = "e".repeat(16);
        for (name, value) in [
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "a b"),
            ("CNI_CONTAINERID", "ä"),
            ("CNI_NETNS", ""),
            ("CNI_NETNS", "run/netns/blue"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "."),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "a\u{a0}b"),
            ("CNI_IFNAME", "a\u{1}b"),
            ("CNI_IFNAME", long.as_str()),
            ("CNI_ARGS", "A"),
            ("CNI_ARGS", "=B"),
            ("CNI_ARGS", "A=B"),
            ("CNI_ARGS", "IgnoreUnknown=0;A=B"),
        ] {
            let error = Parameters::for_add(&env(&GOOD, &[(name, value)])).unwrap_err();
            assert_eq!(error.code, ErrorCode::INVALID_ENVIRONMENT, "{name}={value}");
            assert!(error.msg.contains(name), "{error}");
            assert!(!error.details.is_empty(), "no cure: {error}");
        }
    }

    #[test]
    fn names_at_the_limit_are_taken() {
        for name in ["e", "eth0.100", "...", "ein-name-mit-15", "é234567"] {
            assert_eq!(validate_ifname(name), Ok(()), "{name}");
        }
        assert_eq!(validate_container_id("9"), Ok(()));
    }

    #[test]
    fn del_needs_neither_namespace_nor_readable_arguments() {
        for (netns, args) in [("", ""), ("not/absolute", "garbage"), ("/run/netns/x", "A=B")] {
            let p = Parameters::for_del(&env(&GOOD, &[("CNI_NETNS", netns), ("CNI_ARGS", args)])).unwrap();
            assert_eq!(p.netns, if netns.starts_with('/') { netns } else { "" });
            assert!(p.args.is_empty());
        }
        assert!(Parameters::for_del(&env(&GOOD, &[("CNI_CONTAINERID", "a/b")])).is_err());
    }

    #[test]
    fn an_unknown_command_is_told_the_commands_there_are() {
        for value in ["", "add", "UPDATE"] {
            let error = Command::from_env(&env(&GOOD, &[("CNI_COMMAND", value)])).unwrap_err();
            assert!(error.msg.contains("CNI_COMMAND"), "{error}");
        }
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let error = Parameters::for_add(&|name: &str| match name {
            "CNI_IFNAME" => Some(OsString::from_vec(vec![0xff])),
            _ => env(&GOOD, &[])(name),
        })
        .unwrap_err();
        assert!(error.msg.contains("CNI_IFNAME") && error.details.contains("UTF-8"), "{error}");
    }

    fn env<'a>(base: &'a [(&str, &str)], over: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| over.iter().chain(base).find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
    }
}
