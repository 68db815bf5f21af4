//! Weft behind other plugins: `prevResult` at ADD.
use crate::spec::{AddResult, CniError, Dns, ErrorCode};

/// Refuses an ADD for an interface that an earlier plugin of the list has made.
///
/// # Errors
/// [`ErrorCode::INVALID_CONFIG`].
pub fn refuse_taken(previous: &AddResult, ifname: &str, netns: &str) -> Result<(), CniError> {
    if !previous.interfaces.iter().any(|interface| interface.name == ifname && interface.sandbox == netns) {
        return Ok(());
    }
    Err(CniError::new(
        ErrorCode::INVALID_CONFIG,
        format!("prevResult has an interface {ifname} in {netns} already: an earlier plugin of the list made it"),
    )
    .with_details(
        "Weft makes an interface of its own: make weft-cni the first plugin of the list, or give the network of the \
         earlier plugin another interface name (CNI_IFNAME)",
    ))
}

/// The results of the plugins before, with ours behind.
pub fn merge(previous: AddResult, ours: AddResult) -> AddResult {
    let mut merged = previous;
    // No list is longer than a message is large.
    let shift = u32::try_from(merged.interfaces.len()).unwrap_or(u32::MAX);
    merged.interfaces.extend(ours.interfaces);
    merged.ips.extend(ours.ips.into_iter().map(|mut ip| {
        ip.interface = ip.interface.map(|index| index.saturating_add(shift));
        ip
    }));
    merged.routes.extend(ours.routes);
    merged.dns = first_that_says_something(merged.dns, ours.dns);
    merged
}

/// The first of the two that is not empty.
pub fn first_that_says_something(first: Dns, second: Dns) -> Dns {
    if first.is_empty() { second } else { first }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{Cidr, Interface, IpConfig, Route};

    proptest! {
        #[test]
        fn every_address_keeps_its_interface_and_nothing_is_lost(
            previous in any_result("before"), ours in any_result("ours"),
        ) {
            let merged = merge(previous.clone(), ours.clone());
            let both = [named(&previous), named(&ours)].concat();
            prop_assert_eq!(named(&merged), both);
            prop_assert_eq!(merged.interfaces, [previous.interfaces, ours.interfaces].concat());
            prop_assert_eq!(merged.routes, [previous.routes, ours.routes].concat());
            prop_assert_eq!(merged.dns, if previous.dns.is_empty() { ours.dns } else { previous.dns });
        }

        #[test]
        fn an_interface_is_taken_if_name_and_sandbox_are(previous in any_result("i"), n in 0usize..4, same in any::<bool>()) {
            let sandbox = if same { "/n" } else { "/other" };
            let taken = same && n < previous.interfaces.len();
            prop_assert_eq!(refuse_taken(&previous, &format!("i{n}"), sandbox).is_err(), taken);
        }
    }

    /// Each address with the name of its interface.
    fn named(result: &AddResult) -> Vec<(Cidr, Option<String>)> {
        let name = |index: u32| result.interfaces.get(index as usize).map(|interface| interface.name.clone());
        result.ips.iter().map(|ip| (ip.address, ip.interface.and_then(name))).collect()
    }

    /// Interfaces that are called so, and addresses on some of them.
    fn any_result(name: &'static str) -> impl Strategy<Value = AddResult> {
        let cidr = || any::<std::net::IpAddr>().prop_map(Cidr::host);
        let interfaces = (0usize..4).prop_map(move |n| {
            let called = |n| Interface { name: format!("{name}{n}"), sandbox: "/n".into(), ..Interface::default() };
            (0..n).map(called).collect::<Vec<_>>()
        });
        let servers = prop::collection::vec("[0-9.]{1,9}", 0..2);
        interfaces
            .prop_flat_map(move |interfaces| {
                let count = u32::try_from(interfaces.len()).unwrap();
                let index = prop::option::of(0..count.max(1)).prop_map(move |index| index.filter(|_| count > 0));
                let ip = (cidr(), index).prop_map(|(address, interface)| IpConfig {
                    version: None,
                    address,
                    gateway: None,
                    interface,
                });
                (
                    Just(interfaces),
                    prop::collection::vec(ip, 0..4),
                    prop::collection::vec(cidr().prop_map(Route::to), 0..3),
                    servers.clone(),
                )
            })
            .prop_map(|(interfaces, ips, routes, nameservers)| AddResult {
                interfaces,
                ips,
                routes,
                dns: Dns { nameservers, ..Dns::default() },
                ..AddResult::default()
            })
    }
}
