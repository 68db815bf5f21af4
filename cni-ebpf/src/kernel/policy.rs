//! The policy maps behind the traits of the logic.
use aya_ebpf::btf_maps::lpm_trie::Key;
use cni_common::policy::{Holder, PeerKey, RULE_PORT_BITS, Rule, RuleKey, SENDER_BITS, SenderKey};
use cni_ebpf::{
    Tables,
    ct::CtEnv,
    family::{Family, V4, V6},
    policy::{Blame, Identities, Rules, Ruling},
};

use super::{Kernel, maps::*};

impl Rules for Kernel {
    #[inline(always)]
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32> {
        // SAFETY: programs only read these maps, and entries are freed after an RCU grace period, which a program's run holds off.
        unsafe { POLICY_PEER.get(PeerKey { set, identity }) }.map(|found| found.rules)
    }
    #[inline(always)]
    fn port_rule(&self, key: &RuleKey) -> Option<&Rule> {
        // SAFETY: as above.
        unsafe { POLICY_PORT.get(key) }
    }
    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        POLICY_RULE.get(&Key::new(RULE_PORT_BITS, *key))
    }
    #[inline(always)]
    fn blur(&self, n: u64) -> u64 {
        CtEnv::blur(self, n, self.jiffies())
    }
}

impl Blame for Kernel {
    #[inline(always)]
    fn blame(&self, at: u32, cookie: u32, class: u32) {
        if let Some(told) = TOLD.get_ptr_mut(0) {
            // SAFETY: the slot is this CPU's own.
            let blame = unsafe { &mut (*told).blame };
            (blame.at, blame.cookie, blame.class) = (at, cookie, class);
        }
    }
    #[inline(always)]
    fn ruled(&self, egress: (u32, Ruling), ingress: (u32, Ruling)) {
        if let Some(told) = TOLD.get_ptr_mut(0) {
            // SAFETY: as above.
            let told = unsafe { &mut *told };
            (told.egress_set, told.egress) = (egress.0, egress.1.word());
            (told.ingress_set, told.ingress) = (ingress.0, ingress.1.word());
        }
    }
}

macro_rules! identities {
    ($family:ty, $bits:literal, $identity:ident, $block:ident) => {
        impl Identities<$family> for Kernel {
            #[inline(always)]
            fn holder(&self, a: &<$family as Family>::Addr) -> Option<&Holder> {
                // SAFETY: as above.
                unsafe { $identity.get(a) }
            }
            #[inline(always)]
            fn node(&self, a: &<$family as Family>::Addr) -> Option<u32> {
                match Tables::<$family>::remote(self, a) {
                    Some(remote) => Some(remote.node),
                    None => Tables::<$family>::cidr(self, a).map(|cidr| cidr.node),
                }
            }
            #[inline(always)]
            fn sender(&self, key: &SenderKey) -> Option<u32> {
                SENDERS.get(&Key::new(SENDER_BITS + 128, *key)).map(|found| found.identity)
            }
            #[inline(always)]
            fn block(&self, a: &<$family as Family>::Addr) -> Option<u32> {
                $block.get(&Key::new($bits, *a)).map(|found| found.identity)
            }
            #[inline(always)]
            fn is_inside(&self, a: &<$family as Family>::Addr) -> bool {
                Tables::<$family>::cidr(self, a).is_some()
            }
            #[inline(always)]
            fn is_own(&self, a: &<$family as Family>::Addr) -> bool {
                Tables::<$family>::own(self, a) != 0
            }
            #[inline(always)]
            fn is_service(&self, a: &<$family as Family>::Addr) -> bool {
                Tables::<$family>::is_service(self, a)
            }
        }
    };
}
identities!(V4, 32, IDENTITY4, BLOCK4);
identities!(V6, 128, IDENTITY6, BLOCK6);
