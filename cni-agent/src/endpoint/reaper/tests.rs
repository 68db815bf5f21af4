//! With a kernel that refuses what a test wants. The real one has `tests/lab/tests/reaper.rs`.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{Receiver, Sender, channel},
};

use nix::errno::Errno;

use super::*;

/// Far beyond what anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the kernel was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    One(u32),
    Together(Vec<u32>),
}

/// Says what it was told and waits, if it is to, for a word before it does anything.
struct Fake {
    told: Sender<Told>,
    go: Option<Receiver<()>>,
    /// How often the deletion of a device fails before it succeeds.
    failing: BTreeMap<u32, u32>,
    refuses_groups: bool,
}

fn refused() -> NetlinkError {
    NetlinkError::Refused { what: "delete".into(), index: 0, errno: Errno::EBUSY, detail: None }
}

impl Fake {
    fn tell(&self, what: Told) {
        self.told.send(what).unwrap_or_default();
        if let Some(go) = &self.go {
            go.recv().unwrap_or_default();
        }
    }
}

impl Kernel for Fake {
    fn delete(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.tell(Told::One(index));
        match self.failing.get_mut(&index) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(refused())
            }
            _ => Ok(()),
        }
    }

    fn delete_together(&mut self, indexes: &[u32]) -> Result<(), NetlinkError> {
        self.tell(Told::Together(indexes.to_vec()));
        if self.refuses_groups { Err(refused()) } else { Ok(()) }
    }
}

struct Bench {
    reaper: Reaper,
    told: Receiver<Told>,
    gone: Receiver<u32>,
    note: Sender<u32>,
}

impl Bench {
    fn new(by_group: bool, kernel: impl FnOnce(&mut Fake)) -> Self {
        let ((told_to, told), (note, gone)) = (channel(), channel());
        let mut fake = Fake { told: told_to, go: None, failing: BTreeMap::new(), refuses_groups: false };
        kernel(&mut fake);
        Self { reaper: Reaper::with(fake, by_group).unwrap(), told, gone, note }
    }

    fn delete(&self, device: impl Into<Device>) {
        let (device, note) = (device.into(), self.note.clone());
        let index = device.index;
        self.reaper.delete(device, move || note.send(index).unwrap_or_default());
    }

    fn told(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("the kernel is told")
    }

    fn gone(&self) -> u32 {
        self.gone.recv_timeout(PATIENCE).expect("a device is reported as gone")
    }
}

/// Stops the kernel in its first deletion, gives it `devices` meanwhile and lets it go on.
fn with_a_queue(by_group: bool, devices: std::ops::RangeInclusive<u32>, kernel: impl FnOnce(&mut Fake)) -> Bench {
    let (go, wait) = channel();
    let bench = Bench::new(by_group, |fake| {
        fake.go = Some(wait);
        kernel(fake);
    });
    bench.delete(1000);
    assert_eq!(bench.told(), Told::One(1000));
    devices.for_each(|index| bench.delete(index));
    drop(go);
    assert_eq!(bench.gone(), 1000);
    bench
}

#[test]
fn few_devices_are_deleted_one_by_one_in_their_order() {
    let bench = with_a_queue(true, 1..=7, |_| {});
    for index in 1..=7 {
        assert_eq!((bench.told(), bench.gone()), (Told::One(index), index));
    }
    assert!(bench.reaper.flush(PATIENCE));
}

#[test]
fn many_devices_are_deleted_together_but_never_too_many() {
    let bench = with_a_queue(true, 1..=30, |_| {});
    assert!(bench.reaper.flush(PATIENCE));
    for first in [1, 9, 17] {
        assert_eq!(bench.told(), Told::Together((first..first + 8).collect()));
    }
    for index in 25..=30 {
        assert_eq!(bench.told(), Told::One(index), "six are few");
    }
    assert_eq!(bench.gone.try_iter().collect::<Vec<_>>(), (1..=30).collect::<Vec<_>>());
}

#[test]
fn an_old_kernel_is_never_told_to_delete_together() {
    let bench = with_a_queue(false, 1..=30, |_| {});
    assert!(bench.reaper.flush(PATIENCE));
    assert!(bench.told.try_iter().all(|told| matches!(told, Told::One(_))));
    assert_eq!(bench.gone.try_iter().count(), 30);
}

#[test]
fn what_cannot_be_deleted_together_is_deleted_one_by_one() {
    let bench = with_a_queue(true, 1..=8, |fake| fake.refuses_groups = true);
    assert!(bench.reaper.flush(PATIENCE));
    assert_eq!(bench.told(), Told::Together((1..=8).collect()));
    assert_eq!(bench.told.try_iter().collect::<Vec<_>>(), (1..=8).map(Told::One).collect::<Vec<_>>());
    assert_eq!(bench.gone.try_iter().collect::<BTreeSet<_>>(), (1..=8).collect());
}

#[test]
fn a_device_is_gone_only_when_its_deletion_succeeds_and_holds_up_nobody() {
    let bench = Bench::new(true, |fake| fake.failing = [(1, 2)].into());
    bench.delete(1);
    bench.delete(2);
    assert_eq!(bench.gone(), 2, "the one that fails is not gone");
    assert_eq!(bench.gone(), 1);
    let told: Vec<_> = bench.told.try_iter().collect();
    assert_eq!(told, [1, 2, 1, 1].map(Told::One), "tried again until it is");
}

#[test]
fn a_flush_tries_once_more_what_fails_and_does_not_wait_for_it_for_ever() {
    let bench = Bench::new(true, |fake| fake.failing = [(1, u32::MAX)].into());
    bench.delete(1);
    assert_eq!(bench.told(), Told::One(1));
    assert!(bench.reaper.flush(PATIENCE));
    assert_eq!(bench.told(), Told::One(1));
    assert!(bench.gone.try_recv().is_err());
}

#[test]
fn a_flush_does_not_wait_for_what_comes_after_it() {
    let (go, wait) = channel();
    let bench = Bench::new(true, |fake| fake.go = Some(wait));
    bench.delete(1);
    assert_eq!(bench.told(), Told::One(1));
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| bench.reaper.flush(PATIENCE));
        while bench.reaper.shared.lock().flushes == 0 {
            std::thread::yield_now();
        }
        bench.delete(2);
        go.send(()).unwrap();
        assert!(flush.join().unwrap());
    });
    assert_eq!(bench.gone(), 1);
    assert!(bench.gone.try_recv().is_err(), "the later one waits");
    drop(go);
}

#[test]
fn a_flush_for_one_pods_end_takes_it_first_and_waits_for_nothing_else() {
    let (go, wait) = channel();
    let bench = Bench::new(true, |fake| fake.go = Some(wait));
    bench.delete(1000);
    assert_eq!(bench.told(), Told::One(1000));
    for index in 1..=5 {
        let peer = (format!("/run/netns/{index}"), "eth0".into());
        bench.delete(Device { index, peer });
    }
    assert!(bench.reaper.flush_peer("/run/netns/9", "eth0", PATIENCE), "there is no such device");
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| bench.reaper.flush_peer("/run/netns/4", "eth0", PATIENCE));
        // Only then may the kernel go on: until it is there, the queue is as it was.
        while bench.reaper.shared.lock().waiting.front().is_none_or(|d| d.device.index != 4) {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert!(flush.join().unwrap());
    });
    assert_eq!((bench.gone(), bench.gone()), (1000, 4));
    assert!(bench.gone.try_recv().is_err(), "the others wait");
    drop(go);
}

#[test]
fn the_kernels_number_is_read_from_its_release() {
    assert_eq!(version("6.1.0-50-amd64"), Some((6, 1)));
    assert_eq!(version("5.10.0-32-cloud-amd64"), Some((5, 10)));
    assert_eq!(version("7.3-rc1"), Some((7, 3)));
    assert_eq!(version("linux"), None);
    assert!(version("5.10.0").unwrap() < GROUPS_SINCE && version("6.1.0").unwrap() >= GROUPS_SINCE);
}
