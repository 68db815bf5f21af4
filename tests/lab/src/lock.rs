//! One lab at a time.
use std::{
    env,
    fs::{File, TryLockError},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::{Context as _, Result};

/// Set for a child of a process that holds the lock for both.
pub const HELD_BY_PARENT: &str = "WEFT_LAB_LOCK_HELD";

/// The lock of the [`Quiet`] of this process.
static SHARED: Mutex<Weak<File>> = Mutex::new(Weak::new());

/// Held while a lab is worked on; by tests as long as their lab lives. It is a lock on a directory that is always there, so it
/// leaves nothing behind, and the kernel lets go of it when its holder dies.
#[derive(Debug)]
pub(crate) struct Lock {
    /// None if the parent holds it.
    _file: Option<Arc<File>>,
}

impl Lock {
    /// Waits until nobody else works on the lab, and says so if that may take a while.
    pub(crate) fn wait() -> Result<Self> {
        if env::var_os(HELD_BY_PARENT).is_some() {
            return Ok(Self { _file: None });
        }
        let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let file = shared.map_or_else(|| lock().map(Arc::new), Ok)?;
        Ok(Self { _file: Some(file) })
    }
}

/// Keeps other processes from building a lab between two labs of this one, so that what is found there is this one's doing.
/// While it lives, labs of this process do not exclude each other.
#[derive(Debug)]
pub struct Quiet {
    _file: Arc<File>,
}

impl Quiet {
    /// Waits until nobody else works on the lab. Children that build labs need [`HELD_BY_PARENT`] in their environment.
    ///
    /// # Errors
    /// When the lock can not be had.
    pub fn wait() -> Result<Self> {
        let file = Arc::new(lock()?);
        *SHARED.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&file);
        Ok(Self { _file: file })
    }
}

fn lock() -> Result<File> {
    const WHAT: &str = "lock the lab (it needs root and a /run directory)";
    let file = File::open("/run").context(WHAT)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that works on the lab (a test, a benchmark or a lab command)");
            file.lock().context(WHAT)?;
        }
        Err(TryLockError::Error(e)) => return Err(e).context(WHAT),
    }
    Ok(file)
}
