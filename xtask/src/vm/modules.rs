//! Which kernel modules to load, and in which order.

use std::collections::{BTreeMap, BTreeSet};

/// Modules in the order in which they can be loaded, and those that the kernel does not have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Paths as in modules.dep, each after all that it needs.
    pub load: Vec<String>,
    /// Wanted, but neither a module nor built in.
    pub missing: Vec<String>,
}

/// Puts the wanted modules and all that they need into order.
///
/// `dep` and `builtin` are the texts of modules.dep (as depmod writes it) and modules.builtin.
pub fn order(dep: &str, builtin: &str, wanted: &[impl AsRef<str>]) -> Order {
    let built_in: BTreeSet<String> = builtin.lines().map(name).collect();
    let mut needs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut paths: BTreeMap<String, &str> = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, deps)) = line.split_once(':') {
            needs.insert(path, deps.split_whitespace().collect());
            paths.insert(name(path), path);
        }
    }
    let mut order = Order::default();
    let mut seen = BTreeSet::new();
    for module in wanted.iter().map(AsRef::as_ref) {
        match paths.get(&name(module)) {
            Some(path) => visit(path, &needs, &mut seen, &mut order.load),
            None if built_in.contains(&name(module)) => {}
            None => order.missing.push(module.to_owned()),
        }
    }
    order
}

/// Depth first; what was seen is either loaded already or, in a circle that depmod would have refused, on its way.
fn visit<'a>(
    path: &'a str,
    needs: &BTreeMap<&'a str, Vec<&'a str>>,
    seen: &mut BTreeSet<&'a str>,
    load: &mut Vec<String>,
) {
    if !seen.insert(path) {
        return;
    }
    for need in needs.get(path).into_iter().flatten() {
        visit(need, needs, seen, load);
    }
    load.push(path.to_owned());
}

/// `udp_tunnel` of `kernel/net/ipv4/udp_tunnel.ko.xz`: dashes and underscores mean the same.
fn name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/vxlan.ko.xz: kernel/net/udp_tunnel.ko.xz kernel/net/ip6-udp-tunnel.ko.xz\n\
        kernel/net/udp_tunnel.ko.xz:\nkernel/net/ip6-udp-tunnel.ko.xz: kernel/net/udp_tunnel.ko.xz\nkernel/net/veth.ko.xz:\n";

    #[test]
    fn needs_come_first_and_once() {
        let order = order(DEP, "", &["vxlan", "ip6_udp_tunnel", "veth"]);
        assert_eq!(
            order.load,
            [
                "kernel/net/udp_tunnel.ko.xz",
                "kernel/net/ip6-udp-tunnel.ko.xz",
                "kernel/net/vxlan.ko.xz",
                "kernel/net/veth.ko.xz"
            ]
        );
        assert!(order.missing.is_empty());
    }

    #[test]
    fn what_is_built_in_needs_no_loading_and_what_is_nowhere_is_named() {
        let order = order(DEP, "kernel/drivers/virtio/virtio-pci.ko\n", &["virtio_pci", "netkit"]);
        assert_eq!(order, Order { load: Vec::new(), missing: vec!["netkit".to_owned()] });
    }
}
