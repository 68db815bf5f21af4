//! Maps and helpers behind the traits of the logic.
use aya_ebpf::btf_maps::lpm_trie::Key;
use cni_common::{
    event::ANSWER_RATE,
    maps::{CONFIG_READY, Cidr, Config, Endpoint, Local, Remote, SPARED_SERVICE, Tunnel},
};
use cni_ebpf::{
    Env, Tables,
    ct::CtEnv as _,
    family::{Family, V4, V6},
};

use super::{count, maps::*};

/// The running kernel.
pub struct Kernel;

impl Env for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0).filter(|c| c.flags & CONFIG_READY != 0)
    }
    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        // SAFETY: programs only read these maps, and entries are freed after an RCU grace period, which a program's run holds off.
        unsafe { ENDPOINTS.get(ifindex) }
    }
    #[inline(always)]
    fn tunnel(&self, node: u32) -> Option<&Tunnel> {
        TUNNELS.get(node)
    }
    #[inline(always)]
    fn may_answer(&self) -> bool {
        self.config().is_some_and(|cfg| count::within(ANSWERS.get_ptr_mut(0), cfg.hz, ANSWER_RATE))
    }
    #[inline(always)]
    fn epoch(&self) -> u32 {
        self.ct_config().map_or(0, |cfg| cfg.epoch)
    }
}

macro_rules! tables {
    ($family:ty, $bits:literal, $local:ident, $remote:ident, $cidr:ident, $nodes:ident, $own:ident, $spared:ident) => {
        impl Tables<$family> for Kernel {
            #[inline(always)]
            fn local(&self, a: &<$family as Family>::Addr) -> Option<&Local> {
                // SAFETY: as for the endpoints above.
                unsafe { $local.get(a) }
            }
            #[inline(always)]
            fn remote(&self, a: &<$family as Family>::Addr) -> Option<&Remote> {
                // SAFETY: as for the endpoints above.
                unsafe { $remote.get(a) }
            }
            #[inline(always)]
            fn cidr(&self, a: &<$family as Family>::Addr) -> Option<&Cidr> {
                $cidr.get(&Key::new($bits, *a))
            }
            #[inline(always)]
            fn node_of(&self, underlay: &<$family as Family>::Addr) -> Option<u32> {
                // SAFETY: as for the endpoints above.
                unsafe { $nodes.get(underlay) }.copied()
            }
            #[inline(always)]
            fn own(&self, a: &<$family as Family>::Addr) -> u32 {
                // SAFETY: as for the endpoints above.
                unsafe { $own.get(a) }.copied().unwrap_or(0)
            }
            #[inline(always)]
            fn is_service(&self, a: &<$family as Family>::Addr) -> bool {
                $spared.get(&Key::new($bits, *a)).is_some_and(|flags| flags & SPARED_SERVICE != 0)
            }
        }
    };
}
tables!(V4, 32, LOCAL4, REMOTE4, CIDR4, NODES4, OWN4, SPARED4);
tables!(V6, 128, LOCAL6, REMOTE6, CIDR6, NODES6, OWN6, SPARED6);
