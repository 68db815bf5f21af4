//! What is asked of a machine, done in it.
use std::{collections::BTreeMap, fs, io, path::Path, thread::JoinHandle};

use anyhow::{Context as _, Result, bail};
use lab::{
    INTERFACE, Machine,
    layout::NODE_DEVICE,
    probe::{Place, Wire},
    tool,
};
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, to_value};

use crate::{
    ask::{About, Ask, Who},
    frames::Heard,
    talk, xdp,
};

/// A tracing buffer of our own.
const TRACE: &str = "/sys/kernel/tracing/instances/weft-pair";
/// What the driver hands to the stack, before anything has been pulled together.
const EVENT: &str = "events/net/napi_gro_receive_entry";
/// Bytes of headers in front of the transport's of a tunnelled packet, without the first Ethernet header: the least that our programs read.
const HEADERS: u64 = 20 + 8 + 8 + 14 + 20;

/// How `eth0` has received packets of more than 200 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// So many.
    pub packets: u64,
    /// Of them, those whose headers did not stand in the packet's linear part.
    pub bare: u64,
    /// Of them, those whose checksum somebody vouched for.
    pub vouched: u64,
}

/// A machine that does what it is asked.
pub struct Does {
    machine: Machine,
    places: BTreeMap<Who, Place>,
    served: Option<JoinHandle<io::Result<std::net::IpAddr>>>,
    wire: Option<Wire>,
}

impl Does {
    /// Machine `number` of two, with its pods.
    pub fn up(number: u8) -> Result<Self> {
        let machine = Machine::up(number, 2)?;
        let mut places = BTreeMap::from([(Who::Node, machine.node().place()?)]);
        for (who, name) in [(Who::Pod, "pod"), (Who::Neighbour, "neighbour")] {
            places.insert(who, machine.pod_add(name)?);
        }
        Ok(Self { machine, places, served: None, wire: None })
    }

    fn place(&self, who: Who) -> &Place {
        &self.places[&who]
    }

    /// Does it, and gives the answer.
    pub fn it(&mut self, ask: &Ask) -> Result<Value> {
        let node = self.place(Who::Node);
        Ok(match ask {
            Ask::About => to_value(About {
                kernel: uname()?.release().to_string_lossy().into_owned(),
                mac: Wire::open(node, NODE_DEVICE)?.mac(),
                addresses: self.places.iter().map(|(who, place)| (*who, place.addresses.clone())).collect(),
            })?,
            Ask::Serve { who, transport, any, datagrams } => {
                let (port, served) = talk::echo(self.place(*who), *transport, *any, *datagrams)?;
                self.served = Some(served);
                json!(port)
            }
            Ask::Served => match self.served.take().context("nobody serves")?.join() {
                Ok(seen) => json!(seen.context("the server")?),
                Err(_) => bail!("the server has panicked"),
            },
            Ask::Call { who, transport, to, sizes } => {
                talk::call(self.place(*who), *transport, *to, sizes)?;
                Value::Null
            }
            Ask::Ping { who, to, size, seconds } => {
                // With a deadline an answer that is missing is an error.
                tool::succeeds(self.place(*who), &format!("ping -n -M do -c 2 -i 0.2 -w {seconds} -s {size} {to}"))?;
                Value::Null
            }
            Ask::Listen => {
                self.wire = Some(Wire::open(self.place(Who::Pod), INTERFACE)?);
                Value::Null
            }
            Ask::Heard => {
                let (wire, mut heard) = (self.wire.take().context("nobody listens")?, Heard::default());
                let own = &self.place(Who::Pod).addresses;
                wire.drain(|frame| heard.frame(frame, own))?;
                to_value(heard)?
            }
            Ask::Trace => {
                trace().context("trace what eth0 receives")?;
                Value::Null
            }
            Ask::Traced => to_value(traced().context("read what eth0 has received")?)?,
            Ask::Damaged { who } => to_value(damaged(self.place(*who))?)?,
            Ask::Agent { path } => self.machine.node().ask(path)?,
            Ask::Run { line } => json!(tool::succeeds(node, line)?),
            Ask::Send { frame } => {
                Wire::open(node, NODE_DEVICE)?.send(frame)?;
                Value::Null
            }
            Ask::Restart { arguments } => {
                self.machine.restart_agent(arguments)?;
                Value::Null
            }
            Ask::Xdp { on } => {
                xdp::set(node, NODE_DEVICE, *on)?;
                Value::Null
            }
        })
    }
}

fn trace() -> io::Result<()> {
    let (instance, event) = (Path::new(TRACE), Path::new(TRACE).join(EVENT));
    if instance.exists() {
        fs::remove_dir(instance)?;
    }
    fs::create_dir(instance)?;
    fs::write(event.join("filter"), "len > 200")?;
    fs::write(event.join("enable"), "1")
}

fn traced() -> io::Result<Traced> {
    let text = fs::read_to_string(Path::new(TRACE).join("trace"))?;
    fs::remove_dir(TRACE)?;
    let mut traced = Traced { packets: 0, bare: 0, vouched: 0 };
    for line in text.lines().filter(|line| line.contains(&format!("dev={NODE_DEVICE} "))) {
        let field = |name: &str| {
            let value = line.split([' ', ',']).find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| io::Error::other(format!("no {name} in {line}")))
        };
        traced.packets += 1;
        traced.bare += u64::from(field("len")? - field("data_len")? < HEADERS);
        traced.vouched += u64::from(field("ip_summed")? != 0);
    }
    Ok(traced)
}

/// Counters of the kernel that damaged packets raise.
fn damaged(place: &Place) -> Result<BTreeMap<String, u64>> {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let texts = place.run(|| Ok([read("snmp")?, read("netstat")?, read("snmp6")?, read("sctp/snmp")?]))?;
    let [snmp, netstat, rest @ ..] = texts;
    let mut counters = BTreeMap::new();
    let mut note = |name: String, value: &str| -> Result<()> {
        if name.contains("Csum") || name.contains("Checksum") || name.contains("HdrErrors") {
            counters.insert(name, value.parse()?);
        }
        Ok(())
    };
    // A line of names and a line of values, each behind the protocol's name.
    for text in [snmp, netstat] {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let [names, values] = [pair[0], pair[1]].map(|line| line.split_ascii_whitespace());
            let protocol = names.clone().next().unwrap_or_default().to_owned();
            names.zip(values).skip(1).try_for_each(|(name, value)| note(format!("{protocol}{name}"), value))?;
        }
    }
    for line in rest.iter().flat_map(|text| text.lines()) {
        if let Some((name, value)) = line.split_once(char::is_whitespace) {
            note(name.to_owned(), value.trim())?;
        }
    }
    Ok(counters)
}
