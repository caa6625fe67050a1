//! What a test leaves behind: sockets, tasks and memory of this process, counted before it and after it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time, where several share a process: the counts are of the whole process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed holds nobody up.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sockets of this process; other kinds of files come and go with the runtime.
pub fn sockets() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let target = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
    entries.filter_map(target).filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// Tasks of this runtime that have not ended.
pub fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Bytes of the heap that are in use (of Rust's part of the program).
pub fn memory() -> isize {
    LIVE.load(Ordering::Relaxed)
}

static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is the system's allocator; what is added only counts.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
