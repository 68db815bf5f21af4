//! What the C library says of its heap.

/// One heap for all threads that begin from now on, instead of one each.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, under its lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free pages of the heap back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of the heap that are in use; 0 where the C library does not say.
pub fn heap_in_use() -> usize {
    #[cfg(target_env = "gnu")]
    let bytes = {
        // SAFETY: it takes the allocator's locks, and only reads.
        let info = unsafe { libc::mallinfo2() };
        info.uordblks + info.hblkhd
    };
    #[cfg(not(target_env = "gnu"))]
    let bytes = 0;
    bytes
}
