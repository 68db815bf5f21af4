//! Going through a large hash lot by lot, while others write it.
//!
//! An entry that stays is seen once; one that comes or goes meanwhile is seen or not.
use std::{io, vec};

use cni_common::schema::MapType;

use super::{RawMap, syscall};

/// Entries of a lot, at first. A bucket that has more makes it larger: nobody chooses them, but anybody may try to.
const LOT: u32 = 4096;

/// How far a walk has come. One that is new begins.
#[derive(Debug)]
pub struct Walk {
    at: At,
    most: u32,
    keys: Vec<u8>,
    values: Vec<u8>,
}

#[derive(Debug)]
enum At {
    /// Many entries by one call, and the kernel's cursor.
    Lots(Option<u32>),
    /// Key by key: a hash begins anew behind one that was deleted, so all are asked for first.
    Keys,
    Left(vec::IntoIter<Vec<u8>>),
    End,
}

impl Walk {
    /// From the beginning; `by_lots` if the kernel has batch operations on such maps.
    pub fn new(by_lots: bool) -> Self {
        Self::in_lots_of(LOT, by_lots)
    }

    /// The same, with lots of so many entries at first.
    pub fn in_lots_of(most: u32, by_lots: bool) -> Self {
        Self { at: if by_lots { At::Lots(None) } else { At::Keys }, most, keys: Vec::new(), values: Vec::new() }
    }
}

impl RawMap {
    /// Calls `each` with key and value of every entry of the next lot; whether there may be more. Of a hash.
    ///
    /// # Errors
    /// What the kernel says. Trying again goes on with the same lot.
    pub fn lot(&self, walk: &mut Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        if !matches!(self.spec().kind, MapType::Hash | MapType::LruHash) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &mut walk.at {
            At::Lots(_) => self.lot_at_once(walk, each),
            At::Keys => {
                walk.at = At::Left(self.keys()?.into_iter());
                self.lot_by_key(walk, each)
            }
            At::Left(_) => self.lot_by_key(walk, each),
            At::End => Ok(false),
        }
    }

    fn lot_at_once(&self, walk: &mut Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let At::Lots(cursor) = walk.at else { return Ok(false) };
        let (key, value) = (self.spec().key_size as usize, self.spec().value_size as usize);
        loop {
            walk.keys.resize(key * walk.most as usize, 0);
            walk.values.resize(value * walk.most as usize, 0);
            match syscall::lookup_lot(self.fd(), cursor, walk.most, &mut walk.keys, &mut walk.values) {
                Ok((count, next)) => {
                    let pairs = walk.keys.chunks_exact(key).zip(walk.values.chunks_exact(value));
                    pairs.take(count as usize).for_each(|(k, v)| each(k, v));
                    walk.at = next.map_or(At::End, |next| At::Lots(Some(next)));
                    return Ok(next.is_some());
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && walk.most < self.spec().max_entries => {
                    walk.most = walk.most.saturating_mul(2);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn lot_by_key(&self, walk: &mut Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let At::Left(keys) = &mut walk.at else { return Ok(false) };
        for key in keys.by_ref().take(walk.most as usize) {
            if let Some(value) = self.lookup(&key)? {
                each(&key, &value);
            }
        }
        let more = keys.len() > 0;
        if !more {
            walk.at = At::End;
        }
        Ok(more)
    }
}
