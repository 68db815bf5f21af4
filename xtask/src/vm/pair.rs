//! Two machines of different kernels, joined by a wire: each is a node, with a network card and addresses on it.

use std::{
    env, fs,
    io::Write as _,
    os::unix::net::UnixStream,
    panic,
    path::PathBuf,
    process,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};

use super::{
    guest::Image,
    kernel::{self, Kernel},
    machine::{Extra, Host, Machine, Outcome},
};

/// The test that is run on the second machine, by how its name begins: it does there what the first machine's tests ask.
const SECOND: &str = "both_machines";

/// A pair to boot.
pub struct Pair<'a> {
    host: &'a Host<'a>,
    image: &'a Image,
    name: String,
    kernels: [Kernel; 2],
    sockets: Sockets,
}

/// The pairs that are run with these kernels: of the lists' those of which both are among them; two kernels are a pair in any case.
pub fn choose(listed: &[[String; 2]], kernels: &[&'static str]) -> Vec<[&'static str; 2]> {
    let listed = listed.iter().filter_map(|pair| {
        let find = |key: &String| kernels.iter().find(|k| *k == key).copied();
        Some([find(&pair[0])?, find(&pair[1])?])
    });
    match (listed.collect::<Vec<_>>(), kernels) {
        (none, [one, other]) if none.is_empty() => vec![[one, other]],
        (pairs, _) => pairs,
    }
}

impl<'a> Pair<'a> {
    /// Of these kernels.
    pub fn of(host: &'a Host<'a>, image: &'a Image, keys: [&'static str; 2]) -> Result<Self> {
        let get = |key| kernel::get(host.ws, kernel::series(key)?);
        let (name, kernels) = (keys.join("-"), [get(keys[0])?, get(keys[1])?]);
        // Not in target/: the path of a socket has at most 107 bytes.
        let directory = env::temp_dir().join(format!("weft-pair-{}-{name}", process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { host, image, name, kernels, sockets: Sockets { directory } })
    }

    /// Boots both and follows them to their end. When one crashes, the other is ended: its tests would wait for it.
    pub fn run(self) -> Vec<Outcome> {
        let Self { host, image, name, kernels, sockets } = self;
        let (sockets, broken) = (&sockets, &Mutex::new(None));
        let run = |number: u8, kernel| {
            let own = format!("{name}/{number}");
            let mut outcome = Machine::run_to_end(host, &own, kernel, image, sockets.machine(number));
            if let Some(why) = &mut outcome.broken {
                match *broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(number) {
                    first if first == number => sockets.end(other(number)),
                    first => *why = format!("ended, as machine {name}/{first} did not come to its end"),
                }
            }
            outcome
        };
        let [one, two] = kernels;
        thread::scope(|scope| {
            let second = scope.spawn(|| run(2, two));
            let first = run(1, one);
            // A panic is a bug of ours, and goes on here.
            vec![first, second.join().unwrap_or_else(|panic| panic::resume_unwind(panic))]
        })
    }
}

const fn other(number: u8) -> u8 {
    3 - number
}

/// A directory with the sockets of both machines, which goes with this.
struct Sockets {
    directory: PathBuf,
}

impl Sockets {
    fn path(&self, what: &str, number: u8) -> PathBuf {
        self.directory.join(format!("{what}{number}"))
    }

    /// The wire's end in machine `number`, and what its init has to do with it.
    fn machine(&self, number: u8) -> Extra {
        let [local, remote] = [number, other(number)].map(|n| self.path("wire", n).display().to_string());
        let qemu = [
            // One processor: with two and one queue, drivers before 5.13 take no XDP program.
            "-smp".to_owned(),
            "1".to_owned(),
            "-netdev".to_owned(),
            format!("dgram,id=wire,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"),
            "-device".to_owned(),
            // Without its firmware for booting over the network, which would take seconds to find nothing.
            format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{number},romfile="),
            "-monitor".to_owned(),
            format!("unix:{},server=on,wait=off", self.path("monitor", number).display()),
        ];
        let setup = format!(
            "export WEFT_VM_MACHINE={number} WEFT_VM_TESTS={} WEFT_VM_PEER_V4=192.168.77.{peer} WEFT_VM_PEER_V6=fd77::{peer}\n\
             /sbin/ip addr add 192.168.77.{number}/24 dev eth0; /sbin/ip addr add fd77::{number}/64 dev eth0 nodad; \
             /sbin/ip link set eth0 up",
            if number == 1 { "" } else { SECOND },
            peer = other(number),
        );
        Extra { qemu: qemu.into(), setup }
    }

    /// Ends machine `number`, if it still runs.
    fn end(&self, number: u8) {
        let ended = UnixStream::connect(self.path("monitor", number)).and_then(|mut m| m.write_all(b"quit\n"));
        drop(ended);
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.directory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(kernels: &[&'static str]) -> Vec<[&'static str; 2]> {
        let listed = [["5.10", "newest"], ["6.1", "6.12"]].map(|pair| pair.map(str::to_owned));
        choose(&listed, kernels)
    }

    #[test]
    fn pairs_are_those_of_the_lists_whose_kernels_are_chosen() {
        assert_eq!(pairs(&["5.10", "6.1", "6.12", "newest"]), [["5.10", "newest"], ["6.1", "6.12"]]);
        assert_eq!(pairs(&["5.10", "6.1", "newest"]), [["5.10", "newest"]]);
        assert_eq!(pairs(&["5.10", "6.1", "6.12"]), [["6.1", "6.12"]]);
        assert!(pairs(&["5.10"]).is_empty());
    }

    #[test]
    fn two_kernels_are_a_pair_in_any_case() {
        assert_eq!(pairs(&["5.10", "6.12"]), [["5.10", "6.12"]]);
    }
}
