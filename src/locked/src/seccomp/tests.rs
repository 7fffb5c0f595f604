use std::{
    fs::File,
    net::TcpListener,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::prctl;

use super::*;

/// In a thread of its own, which alone is bound.
fn bound<T: Send + 'static>(test: fn() -> T) -> T {
    let filtered = move || {
        prctl::set_no_new_privs().expect("no new privileges");
        apply(&program(ARCHITECTURE.expect("a filter"), false, None), 0).expect("the kernel takes the filter");
        test()
    };
    thread::spawn(filtered).join().expect("the thread ends")
}

fn executable() -> io::Result<()> {
    // SAFETY: a new mapping somewhere, which nobody uses.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn denied<T>(outcome: io::Result<T>) -> bool {
    outcome.is_err_and(|error| error.raw_os_error() == Some(EPERM))
}

/// What the kernel would do: the filter's answer to a call.
fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 5]) -> u32 {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let now = program[at];
        at += 1;
        let (code, taken) = (u32::from(now.code), |yes: bool| usize::from(if yes { now.jt } else { now.jf }));
        match code & 0x07 {
            BPF_LD => {
                loaded = match now.k {
                    0 => number,
                    4 => architecture,
                    offset => arguments[(offset as usize - 16) / 8],
                }
            }
            BPF_JMP if code & 0xf0 == BPF_JEQ => at += taken(loaded == now.k),
            BPF_JMP if code & 0xf0 == BPF_JGE => at += taken(loaded >= now.k),
            BPF_JMP if code & 0xf0 == BPF_JSET => at += taken(loaded & now.k != 0),
            BPF_RET => return now.k,
            _ => panic!("{code:#x} is not used"),
        }
    }
}

#[test]
fn exactly_the_listed_calls_are_allowed() {
    let architecture = ARCHITECTURE.expect("a filter");
    for (following, image) in [(false, None), (true, None), (true, Some(7))] {
        let program = program(architecture, following, image);
        let listed = |call: &u32| {
            let lists = SERVING.iter().chain(NATIVE).chain(if following { FOLLOWING } else { &[] });
            let mut lists = lists.chain(if image.is_some() { STARTING } else { &[] });
            lists.any(|listed| *listed as u32 == *call)
        };
        // All that there are, and x86-64's x32 forms of them.
        for call in (0..1024).flat_map(|call| [call, call | 0x4000_0000]) {
            // With arguments that are refused wherever arguments are looked at: no thread, a signal, code, closed
            // descriptors.
            let answer = run(&program, architecture, call, [0, 15, PROT_EXEC as u32 | 8, 0, 0]);
            let expected = match i64::from(call) {
                _ if listed(&call) => SECCOMP_RET_ALLOW,
                libc::SYS_clone3 => UNKNOWN,
                _ => DENY,
            };
            assert_eq!(answer, expected, "{call}, following: {following}, {image:?}");
            assert_eq!(run(&program, architecture ^ 1, call, [0; 5]), DENY, "{call} of another architecture");
        }
        for (call, arguments) in [
            (libc::SYS_clone, [CLONE_THREAD as u32, 0, 0, 0, 0]),
            (libc::SYS_kill, [1, 0, 0, 0, 0]),
            (libc::SYS_mmap, [0, 0, libc::PROT_READ as u32, 0, 0]),
            (libc::SYS_mprotect, [0, 0, libc::PROT_WRITE as u32, 0, 0]),
            (libc::SYS_socket, [AF_UNIX as u32, 0, 0, 0, 0]),
            (libc::SYS_socket, [AF_INET as u32, 0, 0, 0, 0]),
            (libc::SYS_socket, [AF_INET6 as u32, 0, 0, 0, 0]),
        ] {
            assert_eq!(run(&program, architecture, call as u32, arguments), SECCOMP_RET_ALLOW, "{call}");
        }
    }
}

#[test]
fn a_successor_is_executed_by_its_descriptor_alone_and_starts() {
    let architecture = ARCHITECTURE.expect("a filter");
    let (with, without) = (program(architecture, true, Some(7)), program(architecture, true, None));
    let empty = libc::AT_EMPTY_PATH as u32;
    for (call, arguments, allowed) in [
        (libc::SYS_execveat, [7, 0, 0, 0, empty], true),
        (libc::SYS_execveat, [8, 0, 0, 0, empty], false),
        (libc::SYS_execveat, [libc::AT_FDCWD as u32, 0, 0, 0, 0], false),
        (libc::SYS_execveat, [7, 0, 0, 0, 0], false),
        (libc::SYS_execveat, [7, 0, 0, 0, empty | libc::AT_SYMLINK_NOFOLLOW as u32], false),
        (libc::SYS_execve, [7, 0, 0, 0, empty], false),
        (libc::SYS_close_range, [3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC, 0, 0], true),
        (libc::SYS_close_range, [3, u32::MAX, 0, 0, 0], false),
        (libc::SYS_dup3, [3, 7, 0, 0, 0], false),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_dup2, [3, 7, 0, 0, 0], false),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_arch_prctl, [0x1002, 0, 0, 0, 0], true),
        // ARCH_SET_GS.
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_arch_prctl, [0x1001, 0, 0, 0, 0], false),
    ] {
        let expected = if allowed { SECCOMP_RET_ALLOW } else { DENY };
        assert_eq!(run(&with, architecture, call as u32, arguments), expected, "{call} {arguments:?}");
        assert_eq!(run(&without, architecture, call as u32, arguments), DENY, "{call} {arguments:?}");
    }
    for (descriptor, expected) in [(7, DENY), (8, SECCOMP_RET_ALLOW)] {
        let close = |program| run(program, architecture, libc::SYS_close as u32, [descriptor, 0, 0, 0, 0]);
        assert_eq!((close(&with), close(&without)), (expected, SECCOMP_RET_ALLOW), "close {descriptor}");
    }
}

/// What the kernel takes for them, at best of many, so that a busy machine does not count. The program is made before:
/// that takes some microseconds, but not without optimization.
#[test]
#[ignore = "a time, which says something on an idle machine only, and nothing on an emulated one"]
fn the_filter_and_a_domain_cost_a_start_next_to_nothing() {
    const MOST: Duration = Duration::from_micros(200);
    let attempt = || {
        thread::spawn(|| {
            prctl::set_no_new_privs().expect("no new privileges");
            let root = File::open("/").expect("the root");
            let program = program(ARCHITECTURE.expect("a filter"), true, Some(1 << 20));
            let start = Instant::now();
            // The rules of a sidecar: sockets, OUTPUT_CERTS, what is above them, and ports.
            if crate::landlock_version().is_ok_and(|version| version >= 4) {
                let rules = crate::Ruleset::new(2, 3, 0).expect("rules");
                for _ in 0..6 {
                    rules.allow_below(root.as_fd(), 2).expect("a directory");
                }
                for port in [53, 15012, 15000, 15022] {
                    rules.allow_port(port, 2).expect("a port");
                }
                rules.enter().expect("the domain");
            }
            apply(&program, SECCOMP_FILTER_FLAG_LOG).expect("the filter");
            start.elapsed()
        })
    };
    let best = (0..200).map(|_| attempt().join().expect("the thread ends")).min().expect("some");
    println!("filter and domain: {} µs at best", best.as_micros());
    assert!(best <= MOST, "{best:?}");
}

#[test]
fn calls_that_serving_needs_are_allowed() {
    bound(|| {
        File::open("/proc/self/status").expect("files");
        TcpListener::bind("127.0.0.1:0").expect("network");
        UnixDatagram::unbound().expect("sockets");
        thread::spawn(|| ()).join().expect("threads");
        nix::sys::signal::kill(nix::unistd::Pid::this(), None).expect("the question for a process");
    });
}

#[test]
fn calls_that_serving_does_not_need_are_denied() {
    bound(|| {
        assert!(denied(Command::new("/bin/true").spawn()), "programs");
        assert!(denied(executable()), "memory with code");
        for (family, kind) in [(libc::AF_VSOCK, libc::SOCK_STREAM), (libc::AF_NETLINK, libc::SOCK_RAW)] {
            // SAFETY: the call takes no pointers.
            let socket = unsafe { libc::socket(family, kind, 0) };
            assert!(denied(Errno::result(socket).map_err(Into::into)), "sockets of family {family}");
        }
        let ourselves = std::process::id().cast_signed();
        // SAFETY: as above; nobody minds the signal.
        let kill = unsafe { libc::kill(ourselves, libc::SIGURG) };
        assert!(denied(Errno::result(kill).map_err(Into::into)), "signals");
    });
}
