//! `from_netdev` on the devices that lead to other nodes.
use std::{collections::BTreeMap, path::PathBuf};

use tracing::info;

use crate::{
    datapath::{
        Datapath,
        attach::{self, How},
        object,
    },
    error_chain,
    netlink::Socket,
    tables::Device,
};

/// Where it is attached.
pub struct Hooks {
    socket: Socket,
    pin_dir: PathBuf,
    by_index: BTreeMap<u32, How>,
    by_name: BTreeMap<String, How>,
}

impl Hooks {
    /// Nothing attached yet by this agent; links of a former one are adopted as they are met.
    pub fn new(socket: Socket, pin_dir: PathBuf) -> Self {
        Self { socket, pin_dir, by_index: BTreeMap::new(), by_name: BTreeMap::new() }
    }

    /// The socket of this thread.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Device and manner.
    pub fn attached(&self) -> &BTreeMap<String, How> {
        &self.by_name
    }

    /// Attaches to the devices that have it not. A device that is no longer one of them keeps the program: it lets pass what is not
    /// ours.
    pub fn apply(&mut self, datapath: &Datapath, devices: &BTreeMap<u32, Device>) -> Result<(), String> {
        self.by_index.retain(|index, _| devices.contains_key(index));
        let mut errors = Vec::new();
        for (index, device) in devices {
            if self.by_index.contains_key(index) {
                continue;
            }
            match self.attach(datapath, *index, &device.name) {
                Ok(how) => {
                    info!(device = device.name, ?how, "watching what comes from other nodes");
                    self.by_index.insert(*index, how);
                    self.by_name.insert(device.name.clone(), how);
                }
                // The others are tried all the same.
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    fn attach(&mut self, datapath: &Datapath, index: u32, name: &str) -> Result<How, String> {
        let program = datapath.program(object::FROM_NETDEV).map_err(|e| error_chain(&e))?;
        attach::device(&mut self.socket, &self.pin_dir, object::FROM_NETDEV, program, (name, index))
            .map_err(|e| error_chain(&e))
    }
}
