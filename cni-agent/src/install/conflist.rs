//! The network configuration that the runtime gets.
use std::path::Path;

use serde_json::json;

/// The network's name in it.
const NETWORK: &str = "weft";

/// Its text. The version is one that every runtime since 2021 knows; newer ones take theirs from the list.
///
/// Capabilities that Weft does not serve stand in it too: what a runtime asks for by them is then refused aloud. Without them it
/// would keep the wish to itself, and the pod would run without its host port.
pub(super) fn render(socket: &Path) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{
            "type": super::configs::PLUGIN,
            "agentSocket": socket,
            "capabilities": {"bandwidth": true, "ips": true, "mac": true, "portMappings": true},
        }],
    });
    format!("{list:#}\n")
}
