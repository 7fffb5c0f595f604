//! Each rung of the ladder, in processes of their own, as UID 1337 under limits and filters.
//!
//! The processes are this program itself: started once more, it takes the limits upon itself and executes itself as
//! the probe.

use std::{
    env, fs, io,
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, Output, id},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::geteuid,
};

mod harness;
#[path = "../examples/probe.rs"]
mod probe;

const MIB: u64 = 1 << 20;

const TESTS: &[(&str, fn())] = &[
    ("eight_mib_hold_secret_memory", eight_mib_hold_secret_memory),
    ("four_mib_lock_the_arena_alone", four_mib_lock_the_arena_alone),
    ("less_than_the_arena_locks_nothing_and_works", less_than_the_arena_locks_nothing_and_works),
    ("a_filter_against_secret_memory_leaves_the_locked_arena", a_filter_against_secret_memory_leaves_the_locked_arena),
    ("a_kernel_without_secret_memory_leaves_the_locked_arena", a_kernel_without_secret_memory_leaves_the_locked_arena),
    ("the_main_stack_is_in_the_arena_and_ends_at_a_guard", the_main_stack_is_in_the_arena_and_ends_at_a_guard),
    ("every_guard_page_faults", every_guard_page_faults),
    ("a_panic_never_unwinds_across_the_stacks", a_panic_never_unwinds_across_the_stacks),
    ("openssl_is_not_adopted_after_its_first_use", openssl_is_not_adopted_after_its_first_use),
    ("a_cleared_stack_keeps_nothing_of_earlier_calls", a_cleared_stack_keeps_nothing_of_earlier_calls),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["confined", limit, forbid, what] => {
            let error = confined(limit, forbid, what);
            println!("not confined: {error}");
            ExitCode::FAILURE
        }
        [_] if env::var_os("PROBE").is_some() => probe::main(),
        _ => harness::run(TESTS),
    }
}

/// Takes the limit, the filter and the user upon this process, and executes the probe in it.
fn confined(limit: &str, forbid: &str, what: &str) -> io::Error {
    let prepare = || -> io::Result<()> {
        let limit = limit.parse().map_err(io::Error::other)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit)?;
        if geteuid().is_root() {
            harness::become_user()?;
        }
        prctl::set_no_new_privs()?;
        match forbid.parse().map_err(io::Error::other)? {
            0 => Ok(()),
            errno => forbid_secret_memory(errno),
        }
    };
    match prepare().and_then(|()| env::current_exe()) {
        Ok(program) => Command::new(program).arg(what).env("PROBE", "1").exec(),
        Err(error) => error,
    }
}

/// What must be left for later mappings.
const HEADROOM_KIB: u64 = 144;

/// The sizes of pages in KiB that a kernel may have: its own, and larger ones, of which all that is mapped is made to be
/// multiples.
fn pages() -> impl Iterator<Item = u64> {
    let own = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64 / 1024;
    [4, 16, 64].into_iter().filter(move |kib| *kib >= own)
}

fn arena_kib(page: u64) -> u64 {
    2432_u64.next_multiple_of(page)
}

fn secret_kib(page: u64) -> u64 {
    32_u64.next_multiple_of(page)
}

fn eight_mib_hold_secret_memory() {
    pages().for_each(eight_mib_hold_it_in_pages_of);
}

fn eight_mib_hold_it_in_pages_of(page: u64) {
    let report = Probe::with_pages_of(page).report(8 * MIB);
    report.expect("keys_secret", "true");
    report.expect("secret_kib", &secret_kib(page).to_string());
    report.expect("arena_kib", &arena_kib(page).to_string());
    report.expect("arena_locked", "true");
    report.expect("adopted", "true");
    // A debug build maps more than the shipped one: what it will map later may not fit any more, or nothing at all.
    let mapped = report.number("mapped_kib");
    if mapped + HEADROOM_KIB <= 8 << 10 {
        report.expect("level", "secret");
    } else {
        report.expect("level", "locked");
        report.misses(&["locked in memory", "is 8192 KiB: raise it to at least"]);
    }
    // All but secret memory, where it is not counted with what is locked, and some pages of the kernel's own.
    let unlocked = secret_kib(page) + 8 * pages().next().unwrap();
    if mapped <= 8 << 10 {
        assert!(report.number("locked_kib") + unlocked >= mapped, "{}", report.0);
    }
}

fn four_mib_lock_the_arena_alone() {
    pages().for_each(four_mib_lock_it_in_pages_of);
}

fn four_mib_lock_it_in_pages_of(page: u64) {
    let report = Probe::with_pages_of(page).report(4 * MIB);
    report.expect("level", "locked");
    report.expect("keys_secret", "true");
    // Where secret memory counts for each process, it is among what is locked.
    let locked = report.number("locked_kib");
    let secret = if report.field("counting") == "Some(Process)" { secret_kib(page) } else { 0 };
    assert_eq!(locked, arena_kib(page) + secret, "{}", report.0);
    report.misses(&["the process as a whole is not locked in memory", "RLIMIT_MEMLOCK", "is 4096 KiB"]);
}

fn less_than_the_arena_locks_nothing_and_works() {
    pages().for_each(less_works_in_pages_of);
}

fn less_works_in_pages_of(page: u64) {
    let probe = Probe::with_pages_of(page);
    for (limit, kib) in [(MIB, "is 1024 KiB"), (64 << 10, "is 64 KiB"), (0, "is 0 KiB")] {
        let report = probe.report(limit);
        report.expect("level", "none");
        report.expect("key", "256");
        // Keys alone have room in less.
        report.expect("keys_secret", if limit > 0 { "true" } else { "false" });
        let what = if limit > 0 { "tokens" } else { "keys" };
        let needed = arena_kib(page);
        let told = format!("{what} can be swapped out: {needed} KiB could not be locked in memory");
        report.misses(&[&told, kib, &format!("raise it to at least {needed} KiB")]);
        report.misses(&["the process as a whole is not locked in memory", kib]);
    }
    probe.report(0).misses(&["keys are not in secret memory: ", "limit of locked memory"]);
}

fn a_filter_against_secret_memory_leaves_the_locked_arena() {
    let report = Probe::new().filtered(Errno::EPERM);
    report.expect("keys_secret", "false");
    report.expect("level", "locked");
    report.misses(&["memfd_secret is forbidden; allow this system call in the seccomp profile"]);
}

fn a_kernel_without_secret_memory_leaves_the_locked_arena() {
    let report = Probe::new().filtered(Errno::ENOSYS);
    report.expect("level", "locked");
    report.misses(&["Linux 5.14 or later with CONFIG_SECRETMEM", "secretmem.enable=1"]);
}

fn the_main_stack_is_in_the_arena_and_ends_at_a_guard() {
    let probe = Probe::new();
    let output = probe.run("stack", 8 * MIB);
    assert_eq!(text(&output), "in_arena=true\n");
    let output = probe.run("overflow", 8 * MIB);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", text(&output));
}

fn every_guard_page_faults() {
    for page in pages() {
        let probe = Probe::with_pages_of(page);
        for which in ["low", "middle", "high"] {
            let output = probe.run(&format!("guard-{which}"), 8 * MIB);
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{which}, {page} KiB: {}", text(&output));
        }
    }
}

fn a_panic_never_unwinds_across_the_stacks() {
    let output = Probe::new().run("panic", 8 * MIB);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", text(&output));
}

fn openssl_is_not_adopted_after_its_first_use() {
    let output = Probe::new().run("late", 8 * MIB);
    assert_eq!(text(&output), "adopted=false after degree=256\n");
}

fn a_cleared_stack_keeps_nothing_of_earlier_calls() {
    if option_env!("RUSTFLAGS").is_some_and(|flags| flags.contains("sanitizer=address")) {
        // The probe looks through the whole stack, and the sanitizer forbids that of frames that are in use.
        return;
    }
    let output = Probe::new().run("idle", 8 * MIB);
    let (before, after) = text(&output).trim().split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let before: usize = before.trim_start_matches("before=").parse().unwrap();
    assert!(before > 2_000, "the control found nothing: {before}");
    assert_eq!(after, "after=0");
}

/// A copy of this program that every user can execute, removed in the end.
struct Probe {
    program: PathBuf,
    /// Bytes of a page.
    page: u64,
}

impl Probe {
    fn new() -> Self {
        Self::with_pages_of(pages().next().unwrap())
    }

    fn with_pages_of(kib: u64) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let copy = env::temp_dir().join(format!("locked-probe-{}-{serial}", id()));
        fs::copy(env::current_exe().unwrap(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        Self { program: copy, page: kib * 1024 }
    }

    fn run(&self, what: &str, limit: u64) -> Output {
        self.confined(what, limit, 0)
    }

    fn report(&self, limit: u64) -> Report {
        Report::from(self.run("report", limit))
    }

    /// With 8 MiB, and a kernel that answers to `memfd_secret` with this error.
    fn filtered(&self, errno: Errno) -> Report {
        Report::from(self.confined("report", 8 * MIB, errno as i32))
    }

    fn confined(&self, what: &str, limit: u64, errno: i32) -> Output {
        let mut command = Command::new(&self.program);
        command.env("SIMULATED_PAGE_SIZE", self.page.to_string());
        command.args(["confined", &limit.to_string(), &errno.to_string(), what]);
        // For the run under AddressSanitizer: faults and local variables as they are without it.
        command.env("ASAN_OPTIONS", "handle_segv=0:handle_abort=0:detect_stack_use_after_return=0:detect_leaks=0");
        command.output().unwrap()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.program);
    }
}

/// A seccomp filter that answers `memfd_secret` with this error and lets all else through.
fn forbid_secret_memory(errno: u32) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        // The number of the call is what a filter's data begin with.
        step(LOAD, 0, 0, 0),
        step(IF_EQUAL, 0, 1, libc::SYS_memfd_secret as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program outlives the call, which copies it.
    let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(set)?;
    Ok(())
}

struct Report(String);

impl From<Output> for Report {
    fn from(output: Output) -> Self {
        assert!(output.status.success(), "{:?}: {}", output.status, text(&output));
        Self(text(&output))
    }
}

impl Report {
    fn field(&self, name: &str) -> &str {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in: {}", self.0))
    }

    fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap()
    }

    fn expect(&self, name: &str, value: &str) {
        assert_eq!(self.field(name), value, "{name} in: {}", self.0);
    }

    /// One sentence about what is missing has all of these parts.
    fn misses(&self, parts: &[&str]) {
        let mut sentences = self.0.lines().filter(|line| line.starts_with("missing="));
        assert!(sentences.any(|line| parts.iter().all(|part| line.contains(part))), "no {parts:?} in: {}", self.0);
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
