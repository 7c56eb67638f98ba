//! An allocator that knows what a thread holds, so that a target's appetite can be limited.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Signed: a thread may free what another one allocated.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator with a meter; to be a test binary's `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter;

fn count(bytes: isize) {
    // While a thread ends its variables are gone already; nobody measures it any more.
    let held = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        held.get()
    });
    if let Ok(held) = held {
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held)));
    }
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing,
// since the thread's variables are constants at their start and need no destructor.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; the pointer came from the system.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above; the pointer came from the system.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Measures what this thread holds at once beyond what it held at the beginning.
pub(crate) struct Gauge(isize);

impl Gauge {
    pub(crate) fn begin() -> Self {
        let held = HELD.get();
        PEAK.set(held);
        Self(held)
    }

    pub(crate) fn end(self) -> usize {
        usize::try_from(PEAK.get() - self.0).unwrap_or_default()
    }
}
