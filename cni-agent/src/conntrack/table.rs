//! A table as a pass sees it, and the kernel's.
use std::io;

use crate::datapath::{RawMap, map::Contents, walk::Walk};

/// A hash of the kernel's, or a stand-in.
pub trait Table {
    /// How far a walk has come.
    type Walk;

    /// A walk from the beginning.
    fn walk(&self) -> Self::Walk;
    /// Calls `each` with key and value of every entry of the next lot; whether there may be more.
    ///
    /// # Errors
    /// What the kernel says, here and below.
    fn lot(&self, walk: &mut Self::Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool>;
    /// The value under a key.
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Deletes an entry; one that is missing is no error.
    fn delete(&self, key: &[u8]) -> io::Result<()>;
    /// Writes a value.
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// Enters a value under a key that is not there yet; whether it was not.
    fn enter(&self, key: &[u8], value: &[u8]) -> io::Result<bool>;
    /// All of it; of a small one.
    fn dump(&self) -> io::Result<Contents>;
}

/// A map of the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// The map.
    pub map: &'a RawMap,
    /// Whether many of its entries take one system call.
    pub by_lots: bool,
}

impl Table for Kernel<'_> {
    type Walk = Walk;

    fn walk(&self) -> Walk {
        Walk::new(self.by_lots)
    }
    fn lot(&self, walk: &mut Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        self.map.lot(walk, each)
    }
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.map.lookup(key)
    }
    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.map.delete(key)
    }
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.map.update(key, value)
    }
    fn enter(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.map.insert(key, value)
    }
    fn dump(&self) -> io::Result<Contents> {
        self.map.dump()
    }
}
