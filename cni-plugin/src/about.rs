//! What the program says to a person who runs it by hand.
use crate::spec::Version;

/// Who it is, who runs it and how to see that it works.
pub fn about() -> String {
    format!(
        "weft-cni {}: the CNI plugin of Weft\n\
         CNI versions: {}\n\
         \n\
         A container runtime (containerd, CRI-O, podman) runs this program, not a person: it names the call in the\n\
         environment (CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH) and hands the network\n\
         configuration over on standard input. The program then asks weft-agent on this node by its socket.\n\
         \n\
         To install it, put it where the runtime looks for plugins (usually /opt/cni/bin); weft-agent does that\n\
         when it starts. To see whether the node works, run `weft status` or `weft doctor`.\n\
         To try the plugin alone: CNI_COMMAND=VERSION weft-cni </dev/null",
        env!("CARGO_PKG_VERSION"),
        Version::list()
    )
}
