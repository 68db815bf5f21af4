//! ICMP errors: they pass with the flow that they are about.
use cni_common::maps::CT_HI_OPENED;

use crate::{
    Packet,
    ct::{
        Ask, CtEnv, Direction, Flows, Way,
        entry::{self, allowed, is_judged},
        signal::{self, DATA},
    },
    nat::{NatFamily, related},
};

/// What policy is asked about a packet, in one register: what is heard of it, or of the packet that it quotes, and which way that one's flow goes, seen from its
/// sender. Bits of what is heard that are always 0 hold the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Question {
    word: u64,
}
impl Question {
    /// About a packet of no flow, by itself.
    pub const ITSELF: Self = Self { word: signal::NOTHING };
    /// None: it passes with a flow that policy of this epoch allows.
    pub const NONE: Self = Self { word: 1 };
    /// The other end of the quoted packet's flow gets what is sent to it by the node's stack.
    const BY_HOST: u32 = 13;
    const BACK: u64 = 1 << 11;
    const QUOTED: u64 = 1 << 12;
    /// Where the quoted packet's network header is.
    const AT: u32 = 24;

    /// About a packet of which this is heard.
    #[inline(always)]
    pub fn of(heard: u64, direction: Direction) -> Self {
        Self { word: heard | (direction as u64 * Self::BACK) }
    }
    /// From what [`word`](Self::word) gives.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { word }
    }
    /// As a number.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.word
    }
    /// The same, of a packet that goes by the node's stack if `by_host` is 1.
    #[inline(always)]
    fn by(self, by_host: u64) -> Self {
        Self { word: self.word | (by_host & 1) << Self::BY_HOST }
    }
    /// Which way the packet goes.
    #[inline(always)]
    pub fn way(self) -> Way {
        if self.word >> Self::BY_HOST & 1 == 0 { Way::Straight } else { Way::Host }
    }
    /// Whether nothing is asked.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.word & !(1 << Self::BY_HOST) == Self::NONE.word
    }
    /// Whether it is about the packet that another one quotes.
    #[inline(always)]
    pub const fn is_quoted(self) -> bool {
        self.word & Self::QUOTED != 0
    }
    /// Which way the flow goes, seen from the sender of the packet that it is about.
    #[inline(always)]
    pub fn direction(self) -> Direction {
        if self.word & Self::BACK == 0 { Direction::Forth } else { Direction::Back }
    }
    /// The packet that it is about, of the packet that was met.
    #[inline(always)]
    pub fn packet(self, met: Ask) -> Ask {
        if self.is_quoted() {
            met.quoted((self.word >> Self::AT) as u32 & 0xff, self.word)
        } else {
            Ask { heard: self.word, ..met }
        }
    }
}

/// What policy is to be asked about an ICMP error: nothing, or about the packet that it quotes, or about itself, as it is about no flow that is known.
///
/// A pod is no router: of its errors only those count that are about what was sent to itself. Else it could reach, under quotations of others' flows, whom
/// policy keeps it from.
#[inline(always)]
pub fn about<F: NatFamily, P: Packet, S: CtEnv + Flows<F>>(p: &mut P, s: &S, ask: &Ask) -> Question {
    let Ok(ip) = ask.header::<F, P>(p) else { return Question::ITSELF };
    let Some(found) = related(p, s, &ip) else { return Question::ITSELF };
    let (from_hi, quote) = (found.from_hi, &found.quote);
    if ask.ends.from != 0 && !F::is_same(&quote.ip.dst, &ip.src) {
        return Question::ITSELF;
    }
    let Some(cfg) = s.ct_config() else { return Question::ITSELF };
    let of = |id: u32, hi: bool| if id == 0 { 0 } else { allowed(hi) };
    let needed = of(ask.ends.to, from_hi) | of(ask.ends.from, !from_hi);
    let verdicts = found.flow.verdicts.get();
    let by_host = entry::by_host(verdicts, from_hi.into());
    if is_judged(verdicts, cfg.epoch, needed) {
        return Question::NONE.by(by_host);
    }
    let direction = if (verdicts & CT_HI_OPENED != 0) == from_hi { Direction::Forth } else { Direction::Back };
    let heard = signal::heard(DATA, quote.rest.asker, quote.rest.proto, quote.rest.ports);
    let Question { word } = Question::of(heard, direction).by(by_host);
    let word = word | Question::QUOTED | (quote.at as u64 & 0xff) << Question::AT;
    Question { word: s.blur(word, s.jiffies()) }
}
