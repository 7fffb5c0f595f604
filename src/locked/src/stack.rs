//! The main stack in the arena: what a function leaves on it is as hidden as the heap.

use std::{process, ptr::NonNull};

use crate::arena::{STACK, lock};

/// Runs `f` on the arena's stack, or on the present one where this architecture has no way to switch. To be called
/// once, by the first thread, around all that the process does. A panic that leaves `f` aborts the process.
pub fn on_arena_stack<R>(f: impl FnOnce() -> R) -> R {
    psm::psm_stack_manipulation! {
        yes {
            use std::sync::atomic::{AtomicBool, Ordering};

            static TAKEN: AtomicBool = AtomicBool::new(false);
            let stack = lock().stack();
            let (Some(stack), false) = (stack, TAKEN.swap(true, Ordering::Relaxed)) else {
                // No arena, or its stack is in use: by us, or by another thread.
                return f();
            };
            let stack = NonNull::slice_from_raw_parts(stack, STACK);
            // SAFETY: the region is STACK bytes of writable memory, page-aligned, with a guard page below; `TAKEN`
            // says that nobody else runs on it.
            let result = unsafe { run_on(stack, f) };
            TAKEN.store(false, Ordering::Relaxed);
            result
        }
        no { f() }
    }
}

/// Runs `f` on this stack, or on the present one where this architecture has no way to switch. A panic that leaves `f`
/// aborts the process.
///
/// # Safety
/// The stack is writable memory, aligned to pages, and nobody else runs on it.
pub(crate) unsafe fn run_on<R>(stack: NonNull<[u8]>, f: impl FnOnce() -> R) -> R {
    let guarded = || {
        let bomb = AbortOnDrop;
        let result = f();
        std::mem::forget(bomb);
        result
    };
    psm::psm_stack_manipulation! {
        yes {
            // SAFETY: the caller answers for the stack, and a panic never leaves the closure.
            unsafe { psm::on_stack(stack.cast().as_ptr(), stack.len(), guarded) }
        }
        no { guarded() }
    }
}

/// Unwinding must not cross the switch of stacks.
struct AbortOnDrop;

impl Drop for AbortOnDrop {
    #[expect(clippy::disallowed_methods, reason = "main cannot be reached: its stack is the other one")]
    fn drop(&mut self) {
        process::abort();
    }
}

/// Whether this is the thread that runs on the arena's stack.
pub(crate) fn is_on_arena_stack() -> bool {
    let here = psm::stack_pointer().addr();
    lock().stack().is_some_and(|stack| (stack.addr().get()..stack.addr().get() + STACK).contains(&here))
}

/// Wipes what earlier calls have left below the present end of the arena's stack. Does nothing on another stack.
/// For the runtime's park hook: a key that was retired is then nowhere, and what is to be wiped is short.
#[inline(never)]
pub fn clear_idle_stack() {
    crate::successor::clear_stack();
    let here = psm::stack_pointer().addr();
    let Some(stack) = lock().stack() else { return };
    let bottom = stack.addr().get();
    if (bottom..bottom + STACK).contains(&here) {
        wipe_down_to(bottom);
    }
}

/// So many words of zeros (16 KiB) in a row are where no call has ever been: the stack begins as zeros.
const UNUSED: usize = 2048;

/// Zeroes what is below the frame of this function, word by word, down to what was never used, at most to `bottom`.
/// It calls nothing, as that could have its own frame there.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn wipe_down_to(bottom: usize) {
    // SAFETY: what lies below the red zone of the innermost function belongs to nobody, and the stack pointer is
    // within the arena's stack, above `bottom`. A signal handler that runs there meanwhile is done before the next
    // word is written.
    unsafe {
        std::arch::asm!(
            "lea {word}, [rsp - 128]",
            "and {word}, -8",
            "xor {zeros:e}, {zeros:e}",
            "2:",
            "cmp {word}, {bottom}",
            "jbe 4f",
            "sub {word}, 8",
            "inc {zeros}",
            "cmp qword ptr [{word}], 0",
            "je 3f",
            "mov qword ptr [{word}], 0",
            "xor {zeros:e}, {zeros:e}",
            "3:",
            "cmp {zeros}, {UNUSED}",
            "jb 2b",
            "4:",
            word = out(reg) _,
            zeros = out(reg) _,
            bottom = in(reg) bottom,
            UNUSED = const UNUSED,
        );
    }
}

/// As for x86-64; the ABI has no red zone here.
#[cfg(target_arch = "aarch64")]
#[inline(never)]
fn wipe_down_to(bottom: usize) {
    // SAFETY: what lies below the stack pointer belongs to nobody, and the stack pointer is within the arena's stack,
    // above `bottom`. A signal handler that runs there meanwhile is done before the next word is written.
    unsafe {
        std::arch::asm!(
            "mov {word}, sp",
            "mov {zeros}, #0",
            "2:",
            "cmp {word}, {bottom}",
            "b.ls 4f",
            "ldr {value}, [{word}, #-8]!",
            "add {zeros}, {zeros}, #1",
            "cbz {value}, 3f",
            "str xzr, [{word}]",
            "mov {zeros}, #0",
            "3:",
            "cmp {zeros}, #{UNUSED}",
            "b.lo 2b",
            "4:",
            word = out(reg) _,
            zeros = out(reg) _,
            value = out(reg) _,
            bottom = in(reg) bottom,
            UNUSED = const UNUSED,
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn wipe_down_to(_bottom: usize) {}
