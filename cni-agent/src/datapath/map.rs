//! Maps as bytes, with the sizes checked against their specification.
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use cni_common::schema::{MapSpec, MapType};

use super::syscall;

/// An open map of ours.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    id: u32,
    spec: MapSpec,
    /// Bytes that a look-up returns: for a per-CPU map those of all possible CPUs.
    width: usize,
}

/// Whole contents, in the order of the keys' bytes.
pub type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

impl RawMap {
    /// Takes an open map, whose sizes must be those of its specification.
    pub fn new(fd: OwnedFd, spec: MapSpec) -> io::Result<Self> {
        let facts = syscall::map_facts(fd.as_fd())?;
        if (facts.key_size, facts.value_size) != (spec.key_size, spec.value_size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("map {} has keys of {} and values of {} bytes", spec.name, facts.key_size, facts.value_size),
            ));
        }
        // Of a map that follows the node's memory its specification does not say it.
        let spec = MapSpec { max_entries: facts.max_entries, ..spec };
        let value = spec.value_size as usize;
        let width = match spec.kind {
            MapType::PerCpuArray => value.next_multiple_of(8) * possible_cpus()?,
            _ => value,
        };
        Ok(Self { fd, id: facts.id, spec, width })
    }

    /// Makes one that goes with the value: for measurements.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(spec: MapSpec) -> io::Result<Self> {
        super::load::raise_memlock_limit();
        Self::new(syscall::create_map(&spec)?, spec)
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The kernel's number of it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it should look like, with the size that it has.
    pub fn spec(&self) -> &MapSpec {
        &self.spec
    }

    fn key(&self, key: &[u8]) -> io::Result<()> {
        if key.len() == self.spec.key_size as usize { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// The value under a key.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.key(key)?;
        let mut value = vec![0; self.width];
        Ok(syscall::lookup(self.fd.as_fd(), key, &mut value)?.then_some(value))
    }

    /// Writes a value under a key, new or not.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.entry(key, value)?;
        syscall::update(self.fd.as_fd(), key, value)
    }

    /// Writes a value under a key that is not there yet; whether it was not.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.entry(key, value)?;
        syscall::insert(self.fd.as_fd(), key, value)
    }

    fn entry(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.key(key)?;
        if value.len() == self.width { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Deletes a key; one that is missing is no error. An array's slot is set to zero, as it cannot be deleted.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.key(key)?;
        match self.spec.kind {
            MapType::Array => syscall::update(self.fd.as_fd(), key, &vec![0; self.width]),
            _ => syscall::delete(self.fd.as_fd(), key).map(drop),
        }
    }

    /// All keys. Entries that come or go meanwhile may be in it or not; none is in it twice.
    pub fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        // No need to ask: an array has all of them, always.
        if matches!(self.spec.kind, MapType::Array | MapType::PerCpuArray) {
            return Ok((0..self.spec.max_entries).map(|index| index.to_ne_bytes().to_vec()).collect());
        }
        let mut keys = std::collections::BTreeSet::new();
        let mut next = vec![0; self.spec.key_size as usize];
        let mut last: Option<Vec<u8>> = None;
        // A hash whose `last` was deleted begins anew: the bound ends a walk that others keep moving.
        for _ in 0..self.spec.max_entries.saturating_mul(2).saturating_add(2) {
            if !syscall::next_key(self.fd.as_fd(), last.as_deref(), &mut next)? {
                break;
            }
            keys.insert(next.clone());
            last = Some(next.clone());
        }
        Ok(keys.into_iter().collect())
    }

    /// All entries; of an array, those that are not all zero.
    pub fn dump(&self) -> io::Result<Contents> {
        if self.spec.kind == MapType::Array
            && let Ok(slots) = self.slots()
        {
            return Ok(slots);
        }
        let mut all = Contents::new();
        for key in self.keys()? {
            if let Some(value) = self.lookup(&key)?
                && (self.spec.kind != MapType::Array || value.iter().any(|b| *b != 0))
            {
                all.insert(key, value);
            }
        }
        Ok(all)
    }

    /// The same of an array: thousands of slots, of which a few are in use, are no reason for thousands of calls.
    fn slots(&self) -> io::Result<Contents> {
        let mut values = vec![0; self.width * self.spec.max_entries as usize];
        syscall::lookup_slots(self.fd.as_fd(), self.spec.max_entries, &mut values)?;
        let all = (0..self.spec.max_entries).zip(values.chunks_exact(self.width));
        let used = all.filter(|(_, value)| value.iter().any(|b| *b != 0));
        Ok(used.map(|(slot, value)| (slot.to_ne_bytes().to_vec(), value.to_vec())).collect())
    }
}

/// CPUs that the kernel has room for, whether they are on or not.
fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, e)| e)
}
