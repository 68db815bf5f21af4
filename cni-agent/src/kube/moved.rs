//! Connections from an address that this node has lost: nothing comes in by them any more, and nobody resets them. Another one is made at once, rather
//! than when the server has been silent for long: the Node object with the new addresses is what the other nodes have already.
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::Shared;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Ends connections when addresses of this node go, as long as it is polled.
pub(super) async fn watch(shared: &Shared) {
    let mut before = BTreeSet::new();
    loop {
        let now: BTreeSet<IpAddr> = shared.tables.read().node_addresses.clone();
        if !before.is_subset(&now) {
            let lost: Vec<String> = before.difference(&now).map(IpAddr::to_string).collect();
            tracing::info!(
                lost = lost.join(", "),
                "this node has lost addresses: the Kubernetes API is asked by another connection"
            );
            shared.link.drop_connection();
            shared.moved.send_modify(|count| *count += 1);
        }
        before = now;
        tokio::time::sleep(LOOK).await;
    }
}
