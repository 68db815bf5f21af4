//! What it costs the agent to look for translations of masqueraded flows that are over, in `weft-bench ct`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytemuck::{Zeroable as _, bytes_of};
use cni_agent::conntrack::{Holds, Kernel, Tables, sweep_translations};
use cni_agent::datapath::{Clock, RawMap, features};
use cni_common::{
    maps::{CtConfig, CtEntry},
    net::{Be16, Ip4},
    schema,
    wire::UDP,
};
use cni_ebpf::{
    ct::key::Asker,
    family::V4,
    nat::{End, NatFamily as _, Pair},
};

use crate::ct::{LIFETIME, spent};
use crate::interrupt;
use crate::path::{progress, progress_end};

/// Translations that are looked through: full tables.
const TRANSLATIONS: u32 = schema::MAX_TRANSLATIONS;
/// The node's end of all of them.
const NODE: Ip4 = Ip4::new([192, 0, 2, 1]);

/// Maps of their own, with the kernel's sizes.
struct Maps {
    flows: RawMap,
    new: RawMap,
    back: RawMap,
    forth: RawMap,
    accounts: RawMap,
}

/// Fills them and goes through them once, as the agent does, rests and all. Every flow is in conntrack, and lives.
pub fn measure() -> Result<BTreeMap<String, f64>> {
    let make = |spec| RawMap::create(spec).with_context(|| format!("make a map like {}", spec.name));
    let maps = Maps {
        flows: make(schema::CT4)?,
        new: make(schema::CT_NEW4)?,
        back: make(schema::NAT_BACK4)?,
        forth: make(schema::NAT_FORTH4)?,
        accounts: make(schema::NAT_HELD4)?,
    };
    let clock = Clock::load().context("load the program that reads the clock")?;
    fill(&maps, clock.now()?)?;
    let features = features::Features::try_all(&[]);
    let by_lots = (features.has("batch-hash"), features.has("batch-lru-hash"));
    let of = |map, by_lots| Kernel { map, by_lots };
    let tables = Tables {
        flows: of(&maps.flows, by_lots.0),
        new: of(&maps.new, by_lots.1),
        back: of(&maps.back, by_lots.0),
        forth: of(&maps.forth, by_lots.0),
        accounts: of(&maps.accounts, by_lots.0),
    };
    progress("a pass through the translations");
    let (began, before) = (Instant::now(), spent()?);
    let rest = |time: Duration| {
        std::thread::park_timeout(time);
        interrupt::check().is_ok()
    };
    let lifetimes = CtConfig { second: 1, ..CtConfig::zeroed() };
    let swept = sweep_translations::<V4, _>(&tables, &lifetimes, &Holds::new(), || clock.now(), rest)?;
    let swept = swept.context("interrupted; everything was taken down")?;
    let (cost, wall) = ((spent()? - before).as_secs_f64(), began.elapsed().as_secs_f64());
    progress_end();
    // Either half is looked at.
    let want = (2 * u64::from(TRANSLATIONS), 0);
    anyhow::ensure!((swept.seen, swept.deleted) == want, "{} seen, {} deleted", swept.seen, swept.deleted);
    Ok(BTreeMap::from([
        ("nat sweep_percent".to_owned(), 100.0 * cost / wall),
        ("nat sweep_ns_per_translation".to_owned(), cost * 1e9 / f64::from(TRANSLATIONS)),
        ("nat sweep_seconds".to_owned(), wall),
    ]))
}

fn fill(maps: &Maps, now: u64) -> Result<()> {
    let flow = CtEntry { seen: now, lifetime: LIFETIME, charged: 1, ..CtEntry::zeroed() };
    for n in 0..TRANSLATIONS {
        if n % 10_000 == 0 {
            interrupt::check()?;
            progress(&format!("translation {n} of {TRANSLATIONS}"));
        }
        let [a, b, c, d] = n.to_be_bytes();
        let pair = Pair::<V4> {
            pod: End { addr: Ip4::new([10, 128 | a, b, c]), port: Be16::from_host(40_000 + u16::from(d)) },
            world: End { addr: Ip4::new([198, 51, b, c]), port: Be16::from_host(443) },
            proto: UDP.into(),
            asker: Asker::NONE,
        };
        let node = End { addr: NODE, port: pair.pod.port };
        let key = pair.flow().0;
        maps.flows.update(bytes_of(&key), bytes_of(&flow)).context("fill the map of flows")?;
        let back = V4::back(&pair.pod, now);
        maps.back
            .update(bytes_of(&pair.key(&node)), bytes_of(&back))
            .context("fill the map by what the world writes")?;
        maps.forth.update(bytes_of(&key), bytes_of(&V4::forth(&node))).context("fill the map by flow")?;
    }
    Ok(())
}
