//! Pods that went without a DEL: a runtime that crashed, or was taken off the node, deletes network namespaces and calls nobody.
//!
//! A pod's device goes with its namespace, so nothing is asked of the kernel while all devices are there.
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::manager::{Attachment, EndpointManager};
use crate::{
    cni::server::Lines,
    error_chain,
    netlink::{NetlinkError, Socket, link, pod},
    tables::Endpoint,
};

/// How long a runtime that has deleted the namespace may take to call DEL itself.
const GRACE: Duration = Duration::from_secs(2);
/// How long to wait before what could not be found out is looked at again.
const AGAIN: Duration = Duration::from_secs(30);

/// What was heard of pods' devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The device of this interface index is gone.
    Device(u32),
    /// Reports were lost: any may be gone.
    Unknown,
}

/// What is to be done about a pod whose device is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    /// Its namespace is gone too: what is left of it goes.
    Dead,
    /// Somebody has deleted the device of a pod that lives.
    CutOff,
    /// It could not be found out.
    Unknown,
}

impl EndpointManager {
    /// Disconnects pods that went without a DEL, each in the line of its attachment. Ends when `gone` has no sender any more.
    pub fn bury_dead_pods(self: &Arc<Self>, lines: &Lines, gone: &Receiver<Gone>) {
        let mut socket = None;
        let mut warned = BTreeSet::new();
        let mut look_at = None;
        loop {
            let heard = match look_at {
                Some(at) => gone.recv_timeout(Instant::saturating_duration_since(&at, Instant::now())),
                None => gone.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match heard {
                // An ordinary DEL takes the row before the device.
                Ok(Gone::Device(index)) if !self.has_device(index) => {}
                Ok(_) => look_at = look_at.or_else(|| Some(Instant::now() + GRACE)),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    look_at = match self.look_for_dead(lines, &mut socket, &mut warned) {
                        Ok(true) => None,
                        Ok(false) => Some(Instant::now() + AGAIN),
                        Err(e) => {
                            warn!(error = %error_chain(&e), "cannot look for pods that are gone; trying again in {AGAIN:?}");
                            socket = None;
                            Some(Instant::now() + AGAIN)
                        }
                    };
                }
            }
        }
    }

    fn has_device(&self, index: u32) -> bool {
        self.tables.read().endpoints.values().any(|e| e.ifindex == index)
    }

    /// Whether everything was found out and done.
    fn look_for_dead(
        self: &Arc<Self>,
        lines: &Lines,
        socket: &mut Option<Socket>,
        warned: &mut BTreeSet<u16>,
    ) -> Result<bool, NetlinkError> {
        let since = Instant::now();
        // Before the devices: what is connected between the two has one.
        let endpoints: Vec<Endpoint> = self.tables.read().endpoints.values().cloned().collect();
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(Socket::open()?),
        };
        let devices: BTreeSet<u32> = link::list(socket)?.into_iter().map(|l| l.index).collect();
        warned.retain(|id| endpoints.iter().any(|e| e.id == *id));
        let mut done = true;
        for e in endpoints.iter().filter(|e| !devices.contains(&e.ifindex)) {
            match judge(&pod::socket_at(&e.netns)) {
                Judgement::Dead => done &= self.bury_dead(lines, e, since),
                // No event will tell when its namespace goes.
                Judgement::CutOff => {
                    done = false;
                    if warned.insert(e.id) {
                        warn!(
                            endpoint = e.id,
                            container = e.container_id,
                            device = e.device,
                            "somebody has deleted the device of a pod that lives: delete the pod, another will be wired"
                        );
                    }
                }
                Judgement::Unknown => done = false,
            }
        }
        Ok(done)
    }

    /// Whether it is gone, by us or by a call that came first.
    fn bury_dead(self: &Arc<Self>, lines: &Lines, e: &Endpoint, since: Instant) -> bool {
        let attachment: Attachment = (e.container_id.clone(), e.ifname.clone());
        let (manager, key) = (Arc::clone(self), attachment.clone());
        let buried = lines.run(attachment, move || {
            // Connected anew meanwhile, it is not what was looked at.
            if !manager.ids().was_attached(&key, since) {
                return Ok(());
            }
            let (container, ifname) = &key;
            info!(container, ifname, "the pod's namespace is gone and nobody has called DEL; disconnecting it");
            manager.disconnect(container, ifname)
        });
        match buried {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                warn!(endpoint = e.id, %error, "cannot disconnect a pod that is gone yet");
                false
            }
            None => false,
        }
    }
}

/// From the attempt to enter the namespace of a pod whose device is gone.
fn judge<S>(namespace: &Result<Option<S>, NetlinkError>) -> Judgement {
    match namespace {
        Ok(None) => Judgement::Dead,
        Ok(Some(_)) => Judgement::CutOff,
        Err(_) => Judgement::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_pod_without_device_and_namespace_is_dead() {
        let refused = NetlinkError::socket("open it")(io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(judge::<()>(&Ok(None)), Judgement::Dead);
        assert_eq!(judge(&Ok(Some(()))), Judgement::CutOff);
        assert_eq!(judge::<()>(&Err(refused)), Judgement::Unknown);
    }
}
