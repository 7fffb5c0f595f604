//! The main stack in the arena: what a function leaves on it is as hidden as the heap.

use std::process;

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
            let guarded = || {
                let bomb = AbortOnDrop;
                let result = f();
                std::mem::forget(bomb);
                result
            };
            // SAFETY: the region is STACK bytes of writable memory, page-aligned, with a guard page below; `TAKEN`
            // says that nobody else runs on it, and a panic never leaves the closure.
            let result = unsafe { psm::on_stack(stack.as_ptr(), STACK, guarded) };
            TAKEN.store(false, Ordering::Relaxed);
            result
        }
        no { f() }
    }
}

/// Unwinding must not cross the switch of stacks.
struct AbortOnDrop;

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        process::abort();
    }
}

/// Wipes what earlier calls have left below the present end of the arena's stack. Does nothing on another stack.
/// For the runtime's park hook: a key that was retired is then nowhere, and what is to be wiped is short.
#[inline(never)]
pub fn clear_idle_stack() {
    let here = 0_u8;
    let here = (&raw const here).addr();
    let Some(stack) = lock().stack() else { return };
    let bottom = stack.addr().get();
    if !(bottom..bottom + STACK).contains(&here) {
        return;
    }
    wipe_below(here, used_below(bottom, here));
}

/// How far down from `here` something stands, rounded up to pages: the stack begins as zeros, so a long run of them
/// is where no call has ever been.
fn used_below(bottom: usize, here: usize) -> usize {
    const RUN: usize = 16 << 10;
    let mut zeros = 0;
    let mut address = here & !7;
    while address >= bottom + 8 && zeros < RUN {
        address -= 8;
        let word = std::ptr::with_exposed_provenance::<u64>(address);
        // SAFETY: the address is aligned and within the arena's stack, which is readable; calls change it meanwhile,
        // which a volatile read allows, and any value is a valid one.
        let word = unsafe { word.read_volatile() };
        zeros = if word == 0 { zeros + 8 } else { 0 };
    }
    here - address
}

/// Zeroes `len` bytes below the frame of this function, which calls nothing that could have its own frame there.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn wipe_below(here: usize, len: usize) {
    // SAFETY: what lies below the red zone of the innermost function belongs to nobody; the range ends within the
    // arena's stack, because it is `len` bytes below `here`. A signal handler that runs there meanwhile is done
    // before the next byte is written.
    unsafe {
        std::arch::asm!(
            "lea rcx, [rsp - 128]",
            "sub rcx, rdi",
            "jbe 2f",
            "cld",
            "rep stosb",
            "2:",
            inout("rdi") here - len => _,
            out("rcx") _,
            in("al") 0_u8,
        );
    }
}

/// As for x86-64; the ABI has no red zone here.
#[cfg(target_arch = "aarch64")]
#[inline(never)]
fn wipe_below(here: usize, len: usize) {
    // SAFETY: what lies below the stack pointer belongs to nobody; the range ends within the arena's stack, because
    // it is `len` bytes below `here`. `len` counts from a word, so whole words are written.
    unsafe {
        std::arch::asm!(
            "mov {end}, sp",
            "2: cmp {address}, {end}",
            "b.hs 3f",
            "str xzr, [{address}], #8",
            "b 2b",
            "3:",
            address = inout(reg) here - len => _,
            end = out(reg) _,
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn wipe_below(_here: usize, _len: usize) {}
