//! Which programs are where: `from_netdev` on the devices that lead to other nodes, the others on our own and on the pods' block.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use tracing::info;

use crate::{
    datapath::{
        Datapath,
        attach::{self, How, Own},
        object,
    },
    drift::compare::Hook,
    error_chain,
    fault::{self, Point},
    netlink::{Socket, names},
    tables::Device,
};

/// Where it is attached.
pub struct Hooks {
    socket: Socket,
    pin_dir: PathBuf,
    tcx: bool,
    by_index: BTreeMap<u32, (String, How)>,
    by_name: BTreeMap<String, How>,
    own: Own,
    own_hooks: Option<[How; 2]>,
    /// Leftovers of former agents have been looked for.
    swept: bool,
}

impl Hooks {
    /// Nothing attached yet by this agent but on its own devices, if that; links of a former one are adopted as they are met.
    pub fn new(socket: Socket, pin_dir: PathBuf, tcx: bool, (own, own_hooks): (Own, Option<[How; 2]>)) -> Self {
        let (by_index, by_name) = (BTreeMap::new(), BTreeMap::new());
        Self { socket, pin_dir, tcx, by_index, by_name, own, own_hooks, swept: false }
    }

    /// How `from_host` and `from_overlay` are attached; `None`: another build's are.
    pub fn own(&self) -> Option<[How; 2]> {
        self.own_hooks
    }

    /// Puts this build's programs in the place of another's, hook by hook: the maps of both are filled. Its map pins and programs' pins
    /// follow. Doing it twice is fine.
    pub fn swap(&mut self, datapath: &Datapath, devices: &BTreeMap<u32, Device>) -> Result<(), String> {
        datapath.migrate().map_err(|e| error_chain(&e))?;
        datapath.swap_while_meeting(|| {
            self.apply(datapath, devices, false)?;
            let own = attach::own(&mut self.socket, &self.pin_dir, datapath, self.own, self.tcx);
            self.own_hooks = Some(own.map_err(|e| error_chain(&e))?);
            Ok(())
        })?;
        datapath.settle().map_err(|e| error_chain(&e))
    }

    /// The socket of this thread.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Device and manner.
    pub fn attached(&self) -> &BTreeMap<String, How> {
        &self.by_name
    }

    /// Interface indexes of the devices that carry `from_netdev`.
    pub fn indexes(&self) -> BTreeSet<u32> {
        self.by_index.keys().copied().collect()
    }

    /// Every program of this build and its place; none while another's run.
    pub fn places(&self) -> Vec<Hook> {
        let at = |program, device: &str, index, how| Hook { program, device: device.into(), index, how, id: None };
        let own = self.own_hooks.iter().flat_map(|[host, overlay]| {
            [
                at(object::FROM_POD, names::BLOCK, 0, None),
                at(object::FROM_HOST, names::NET, self.own.weft_net, Some(*host)),
                at(object::FROM_OVERLAY, names::VXLAN, self.own.weft_vxlan, Some(*overlay)),
            ]
        });
        let others = self.by_index.iter().map(|(index, (name, how))| at(object::FROM_NETDEV, name, *index, Some(*how)));
        own.chain(others).collect()
    }

    /// Notes how a device has its program now.
    pub fn note(&mut self, index: u32, how: How) {
        if let Some((_, there)) = self.by_index.get_mut(&index) {
            *there = how;
        }
        let own = [self.own.weft_net, self.own.weft_vxlan].iter().position(|own| *own == index);
        if let (Some(hooks), Some(place)) = (&mut self.own_hooks, own) {
            hooks[place] = how;
        }
    }

    /// The directory of links, and whether new ones are made.
    pub fn pins(&self) -> (&Path, bool) {
        (&self.pin_dir, self.tcx)
    }

    /// Attaches to the devices that have it not, and takes it from those that are no longer among them. What a former agent left on
    /// others goes when `complete`: once the Node object is known, a device that is not listed is not waited for.
    pub fn apply(
        &mut self,
        datapath: &Datapath,
        devices: &BTreeMap<u32, Device>,
        complete: bool,
    ) -> Result<(), String> {
        let mut errors = Vec::new();
        for (index, device) in devices {
            if self.by_index.contains_key(index) {
                continue;
            }
            match self.attach(datapath, *index, &device.name) {
                Ok(how) => {
                    info!(device = device.name, ?how, "watching what comes from other nodes");
                    self.by_index.insert(*index, (device.name.clone(), how));
                    fault::pass(Point::NetdevHooked);
                }
                // The others are tried all the same.
                Err(e) => errors.push(e),
            }
        }
        // New ones first: no packet of a node that moves from device to device is missed.
        let gone: Vec<u32> = self.by_index.keys().filter(|index| !devices.contains_key(index)).copied().collect();
        for index in gone {
            let Some((name, how)) = self.by_index.get(&index).cloned() else { continue };
            // A device made anew under the same name: what is pinned under it is the new one's by now.
            if devices.values().any(|d| d.name == name) {
                self.by_index.remove(&index);
                continue;
            }
            match self.detach(&name, index, how) {
                Ok(()) => drop(self.by_index.remove(&index)),
                Err(e) => errors.push(e),
            }
        }
        self.by_name = self.by_index.values().cloned().collect();
        if complete && !devices.is_empty() {
            errors.extend(self.sweep(devices).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// Links that a former agent left on devices that are none of ours any more.
    fn sweep(&mut self, devices: &BTreeMap<u32, Device>) -> Result<(), String> {
        if self.swept {
            return Ok(());
        }
        let linked = attach::linked(&self.pin_dir, object::FROM_NETDEV).map_err(|e| error_chain(&e))?;
        let mut errors = Vec::new();
        for name in linked.into_iter().filter(|name| !devices.values().any(|d| d.name == *name)) {
            errors.extend(self.detach(&name, 0, How::Tcx).err());
        }
        // What failed is tried again with the next attempt.
        self.swept = errors.is_empty();
        if self.swept { Ok(()) } else { Err(errors.join("; ")) }
    }

    fn detach(&mut self, name: &str, index: u32, how: How) -> Result<(), String> {
        attach::detach(&mut self.socket, &self.pin_dir, object::FROM_NETDEV, (name, index), how)
            .map_err(|e| error_chain(&e))?;
        info!(device = name, ?how, "no longer watching it: it leads to no other node");
        Ok(())
    }

    fn attach(&mut self, datapath: &Datapath, index: u32, name: &str) -> Result<How, String> {
        let program = datapath.program(object::FROM_NETDEV).map_err(|e| error_chain(&e))?;
        let program = (object::FROM_NETDEV, program);
        attach::device(&mut self.socket, &self.pin_dir, program, (name, index), self.tcx).map_err(|e| error_chain(&e))
    }
}
