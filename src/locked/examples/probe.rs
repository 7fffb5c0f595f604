//! A process that uses the crate as `sds-shim` does, and says how it went: `probe report | stack | idle |
//! overflow | panic | late | guard-low | guard-middle | guard-high`. `tests/ladder.rs` has it inside and runs it under limits and filters;
//! as an example it is there to be measured, built as the shipped binary is.

use std::{env, hint::black_box, process::ExitCode};

use locked::{
    LockedAllocator, Need, ProcessLock, adopt_openssl, fill_openssl_tables, generate_ec_key, harden_process,
    lock_process, on_arena_stack, open_secret_memory, report, usage,
};
use openssl::{ec, nid::Nid};

#[global_allocator]
static ALLOCATOR: LockedAllocator = LockedAllocator;

/// What the shim has on its heap when it is idle.
const HEAP: usize = 400 << 10;

pub(crate) fn main() -> ExitCode {
    let what = env::args().nth(1).unwrap_or_default();
    if let Err(error) = harden_process() {
        println!("hardening: {error}");
        return ExitCode::FAILURE;
    }
    match what.as_str() {
        "report" => on_arena_stack(tell),
        "stack" => on_arena_stack(stack),
        "idle" => on_arena_stack(idle),
        "overflow" => on_arena_stack(|| println!("depth {}", descend(0))),
        "guard-low" => on_arena_stack(|| touch(|stack, _| stack - 1)),
        "guard-middle" => on_arena_stack(|| touch(|_, heap| heap - 1)),
        "guard-high" => on_arena_stack(|| touch(|_, heap| heap + usage().capacity + 64)),
        "late" => {
            let group = ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("the curve");
            println!("adopted={} after degree={}", adopt_openssl().is_ok(), group.degree());
        }
        "panic" => on_arena_stack(|| panic!("on the arena's stack")),
        _ => {
            println!("unknown: {what}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// One `name=value` for each line.
fn tell() {
    let adopted = adopt_openssl().is_ok();
    println!("adopted={adopted}");
    fill_openssl_tables();
    let heap = black_box(vec![7_u8; HEAP]);
    open_secret_memory(Need::Usual);
    let outcome = lock_process();
    let key = generate_ec_key(Nid::X9_62_PRIME256V1).expect("a key");
    println!("key={}", key.bits());
    let report = report();
    println!("level={}", report.level());
    println!("keys_secret={}", report.keys_secret);
    println!("secret_kib={}", report.secret.charged / 1024);
    println!("counting={:?}", report.counting);
    println!("arena_locked={}", report.arena_locked);
    println!(
        "process={}",
        match outcome {
            ProcessLock::Refused(errno) => format!("Refused({errno:?})"),
            outcome => format!("{outcome:?}"),
        }
    );
    println!("arena_kib={}", report.arena_mapped / 1024);
    println!("mapped_kib={}", report.mapped / 1024);
    println!("locked_kib={}", report.locked.unwrap_or(0) / 1024);
    println!("used={} peak={} capacity={}", report.usage.used, usage().peak, report.usage.capacity);
    for sentence in &report.missing {
        println!("missing={sentence}");
    }
    drop(heap);
}

/// Whether a local variable is in the arena's stack, which is its first range.
fn stack() {
    let local = 0_u8;
    println!("in_arena={}", contains_address((&raw const local).addr()));
}

#[inline(never)]
fn descend(depth: usize) -> usize {
    let frame = black_box([depth; 128]);
    if depth == usize::MAX { 0 } else { descend(depth + 1) + frame[depth % 128] }
}

/// Reads one byte at an address that is reckoned from where the stack and the heap begin.
fn touch(address: impl Fn(usize, usize) -> usize) {
    let starts = starts();
    let address = address(starts[0], starts[1]);
    // SAFETY: this is to fault; should it not, it reads a byte of the arena or behind it.
    let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() };
    println!("read {byte}");
}

/// A word that no instruction or table has as it stands.
const NEEDLE: u64 = 0x5EC2_E7A1_0DD5_BA11;
const MASK: u64 = 0xFFFF_0000_FFFF_0000;

/// How often the needle stands in the arena, before and after.
fn idle() {
    leave_needles(black_box(MASK));
    println!("before={}", needles());
    locked::clear_idle_stack();
    println!("after={}", needles());
}

#[inline(never)]
fn leave_needles(mask: u64) {
    let mut frame = [0_u64; 3_000];
    for word in &mut frame {
        *word = black_box(NEEDLE ^ MASK) ^ mask;
    }
    black_box(&frame);
}

#[cfg(feature = "dump")]
fn needles() -> usize {
    let mut found = 0;
    locked::for_each_arena_byte_range(|bytes| {
        let is_needle = |word: &&[u8]| {
            u64::from_ne_bytes((*word).try_into().expect("eight bytes")) ^ black_box(MASK) == NEEDLE ^ MASK
        };
        found += bytes.chunks_exact(8).filter(is_needle).count();
    });
    found
}

#[cfg(feature = "dump")]
fn contains_address(address: usize) -> bool {
    let mut found = false;
    locked::for_each_arena_byte_range(|bytes| {
        found |= bytes.as_ptr_range().contains(&std::ptr::without_provenance(address))
    });
    found
}

#[cfg(feature = "dump")]
fn starts() -> Vec<usize> {
    let mut starts = Vec::with_capacity(2);
    locked::for_each_arena_byte_range(|bytes| starts.push(bytes.as_ptr().expose_provenance()));
    starts
}

#[cfg(not(feature = "dump"))]
fn starts() -> Vec<usize> {
    vec![1, 1]
}

#[cfg(not(feature = "dump"))]
fn needles() -> usize {
    0
}

#[cfg(not(feature = "dump"))]
fn contains_address(_address: usize) -> bool {
    false
}
