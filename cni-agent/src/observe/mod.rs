//! What the programs tell: drop events, with the pods' names put to them, and map entries by field.
pub mod render;

use std::{io, sync::Arc, thread, time::Duration};

use aya::maps::{Map, MapError};
use cni_common::drop::DropReason;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::broadcast;
use tracing::{error, warn};

use crate::{api::types::DropEvent, datapath::events::Events, tables::Tables};

/// Events that a slow reader may be behind before it loses some.
const BACKLOG: usize = 1024;
/// What policy drops packets for.
const DENIALS: [DropReason; 3] = [DropReason::PolicyEgress, DropReason::PolicyIngress, DropReason::PolicyUnknown];
/// How long one wait for events lasts; it only bounds how late a dead ring is noticed.
const WAIT: Duration = Duration::from_secs(60);

/// Reads the ring and hands events to whoever listens.
#[derive(Clone, Debug)]
pub struct Observer {
    sender: broadcast::Sender<Arc<DropEvent>>,
}

/// Events cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The ring does not open.
    #[error("open the ring of drop events")]
    Ring(#[from] MapError),
    /// No thread.
    #[error("start the thread that reads drop events")]
    Thread(#[from] io::Error),
}

impl Observer {
    /// Starts the thread. It ends with the process.
    ///
    /// `explain` adds to the event of a packet that policy denies, with the cookie and the label class that the program has put there, what policies have to do with it.
    pub fn start(
        ring: Map,
        tables: Arc<Tables>,
        explain: impl Fn(&mut DropEvent, u32, u32) + Send + 'static,
    ) -> Result<Self, ObserveError> {
        let mut events = Events::new(ring)?;
        let sender = broadcast::Sender::new(BACKLOG);
        let observer = Self { sender: sender.clone() };
        thread::Builder::new().name("drop-events".into()).spawn(move || {
            loop {
                let boot = boot_time();
                let result = events.wait(WAIT, |e| {
                    // Nobody listens: the counters have it all the same.
                    if sender.receiver_count() == 0 {
                        return;
                    }
                    let pod = pod_of(&tables, e.endpoint);
                    let mut event = DropEvent::new(&e, boot, pod);
                    if DENIALS.iter().any(|reason| event.reason == reason.name()) {
                        explain(&mut event, e.cookie, e.class);
                    }
                    if sender.send(Arc::new(event)).is_err() {
                        warn!("the last listener has just left");
                    }
                });
                if let Err(e) = result {
                    error!(error = %e, "drop events can no longer be read; counters go on");
                    return;
                }
            }
        })?;
        Ok(observer)
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<DropEvent>> {
        self.sender.subscribe()
    }
}

fn pod_of(tables: &Tables, endpoint: u32) -> Option<String> {
    let id = u16::try_from(endpoint).ok().filter(|id| *id != 0)?;
    let rows = tables.read();
    let e = rows.endpoints.get(&id)?;
    Some(if e.pod_name.is_empty() { e.container_id.clone() } else { e.pod().to_string() })
}

/// The wall clock's reading at zero of `CLOCK_MONOTONIC`, nanoseconds since 1970. Read anew now and then, as somebody may set the clock.
fn boot_time() -> u64 {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    let boot = read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC));
    u64::try_from(boot.as_nanos()).unwrap_or(0)
}
