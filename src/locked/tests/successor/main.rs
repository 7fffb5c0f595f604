//! Crashes of all kinds, in processes of their own: what comes of each is executed anew in place, with all that was handed
//! on. The processes are this program itself.

use std::{
    alloc::{GlobalAlloc as _, Layout},
    env,
    ffi::OsString,
    hint::black_box,
    os::{
        fd::AsFd as _,
        unix::{
            fs::PermissionsExt as _,
            net::UnixListener,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    panic,
    process::{Command, ExitCode, Output},
    thread,
    time::Duration,
};

use locked::{Crash, Inherited, Listener, LockedAllocator, Need, Reached, Structure};
use nix::{
    libc,
    sys::{
        signal::{SigSet, Signal, kill, raise},
        signalfd::SignalFd,
    },
    unistd::{Pid, geteuid, getpid},
};
use openssl::nid::Nid;

#[path = "../harness/mod.rs"]
mod harness;
mod life;

use life::{LARGE, TEXT, live};

#[global_allocator]
static ALLOCATOR: LockedAllocator = LockedAllocator;

const TESTS: &[(&str, fn())] = &[
    ("every_kind_of_crash_has_a_successor", every_kind_of_crash_has_a_successor),
    ("a_thread_may_crash_as_well", a_thread_may_crash_as_well),
    ("the_socket_and_the_command_are_handed_on", the_socket_and_the_command_are_handed_on),
    ("the_tenth_crash_ends_the_process", the_tenth_crash_ends_the_process),
    ("without_standing_by_a_crash_ends_the_process", without_standing_by_a_crash_ends_the_process),
    ("the_first_process_ends_as_well", the_first_process_ends_as_well),
    ("a_signal_that_was_sent_ends_the_process", a_signal_that_was_sent_ends_the_process),
    ("a_record_of_another_process_is_not_taken", a_record_of_another_process_is_not_taken),
    ("a_key_is_handed_on_where_nobody_could_have_read_it", a_key_is_handed_on_where_nobody_could_have_read_it),
    ("a_start_that_crashes_hands_the_key_on_once_more", a_start_that_crashes_hands_the_key_on_once_more),
    ("a_signal_that_is_being_handled_is_handed_on", a_signal_that_is_being_handled_is_handed_on),
    ("an_overwritten_record_is_not_taken", an_overwritten_record_is_not_taken),
    ("a_key_is_handed_on_until_another_takes_its_place", a_key_is_handed_on_until_another_takes_its_place),
];

/// Other programs are this one as well: under other kernels there are none beside it.
fn main() -> ExitCode {
    let mut words = env::args().skip(1);
    match (words.next().as_deref(), words.next()) {
        (Some("as-command"), _) => {
            thread::sleep(Duration::from_millis(200));
            return ExitCode::from(5);
        }
        (Some("as-killer"), Some(pid)) => {
            kill(Pid::from_raw(pid.parse().expect("a number")), Signal::SIGSEGV).expect("send it");
            return ExitCode::SUCCESS;
        }
        (Some("as-user"), Some(program)) => {
            // Not by `Command::uid`, which forks.
            harness::become_user().expect("become another user");
            let failed = Command::new(program).args(words).exec();
            panic!("cannot start it: {failed}");
        }
        _ => {}
    }
    if let Ok(what) = env::var("CRASH") {
        return match locked::harden_process() {
            Ok(inherited) => locked::on_arena_stack(|| live(&what, inherited)),
            Err(error) => {
                println!("hardening: {error}");
                ExitCode::FAILURE
            }
        };
    }
    harness::run(TESTS)
}

struct Lived {
    output: Output,
    text: String,
}

fn lives(what: &str, edit: impl FnOnce(&mut Command)) -> Lived {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.arg0("its-name");
    run(what, command, edit)
}

/// The same of a copy that its user cannot read, so that others of that user cannot attach to it.
fn closed_lives(what: &str) -> Lived {
    let copy = env::temp_dir().join(format!("successor-{}-{what}", std::process::id()));
    std::fs::copy(env::current_exe().expect("this program"), &copy).expect("copy it");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o111)).expect("close it");
    let mut command = Command::new(&copy);
    if geteuid().is_root() {
        // Root reads what it likes.
        command = Command::new(env::current_exe().expect("this program"));
        command.arg("as-user").arg(&copy);
    }
    let lived = run(what, command, |command| _ = command.env("FLIPPED", "no"));
    let _ = std::fs::remove_file(&copy);
    lived
}

fn run(what: &str, mut command: Command, edit: impl FnOnce(&mut Command)) -> Lived {
    command.args(["an argument", ""]).env("CRASH", what).env("RUST_BACKTRACE", "1");
    edit(&mut command);
    let output = command.output().expect("start it");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Lived { output, text }
}

impl Lived {
    fn expect(&self, text: &str) {
        assert!(self.text.contains(text), "{text:?} is not in {}", self.text);
    }

    fn line(&self, begin: &str) -> &str {
        self.text.lines().find_map(|line| line.strip_prefix(begin)).unwrap_or_else(|| panic!("{begin}: {}", self.text))
    }
}

fn every_kind_of_crash_has_a_successor() {
    let null = format!("{:?}", Some(Reached::Null));
    for (what, signal, reached) in [
        ("panic", Signal::SIGABRT, "None"),
        ("full", Signal::SIGABRT, "None"),
        ("abort", Signal::SIGABRT, "None"),
        ("stack", Signal::SIGSEGV, "Some(Stack)"),
        ("fault", Signal::SIGSEGV, &null),
        ("elsewhere", Signal::SIGSEGV, "Some(Elsewhere)"),
        ("illegal", Signal::SIGILL, "None"),
        ("trap", Signal::SIGTRAP, "None"),
        ("float", Signal::SIGFPE, "None"),
        ("bus", Signal::SIGBUS, "None"),
        ("sys", Signal::SIGSYS, "None"),
    ] {
        let lived = lives(what, |_| ());
        assert!(lived.output.status.success(), "{what}: {}: {}", lived.output.status, lived.text);
        let pid = lived.line("life 1 of ");
        lived.expect(&format!(
            "pid {pid} args [\"an argument\", \"\"] crash Crash {{ crashes: 1, signal: {}",
            signal as i32
        ));
        lived.expect(&format!("reached: {reached}"));
        lived.expect(&format!("told: crashed with {signal} (code "));
        lived.expect("variable Err(NotPresent)");
        lived.expect("mask Ok(0)");
        lived.expect("no listener First");
        lived.expect("no listener Second");
        assert!(lived.line("name ").starts_with("successor-"), "{}", lived.text);
    }
}

fn a_thread_may_crash_as_well() {
    let lived = lives("thread", |_| ());
    assert!(lived.output.status.success(), "{}: {}", lived.output.status, lived.text);
    lived.expect("crashes: 1, signal: 11");
}

fn the_socket_and_the_command_are_handed_on() {
    let path = env::temp_dir().join(format!("successor-{}", std::process::id()));
    let lived = lives("handed-on", |command| _ = command.env("SOCKET", &path));
    let second = format!("{}-2", path.display());
    for path in [path.clone(), (&second).into()] {
        let _ = std::fs::remove_file(path);
    }
    lived.expect(&format!("listener First Some({path:?}) (3, 5)"));
    lived.expect(&format!("listener Second Some({second:?}) (7, 9)"));
    let pid = lived.line("command ");
    lived.expect(&format!("inherited {pid} None Some((Pid({pid}), ExitStatus(unix_wait_status(1280))))"));
}

fn the_tenth_crash_ends_the_process() {
    let lived = lives("loop", |_| ());
    assert_eq!(lived.output.status.signal(), Some(Signal::SIGSEGV as i32), "{}", lived.text);
    lived.expect("life 10 of ");
    lived.expect("10 crashes within 10 minutes");
    assert!(!lived.text.contains("life 11 of"), "{}", lived.text);
}

fn without_standing_by_a_crash_ends_the_process() {
    let lived = lives("stood-down", |_| ());
    assert_eq!(lived.output.status.signal(), Some(Signal::SIGSEGV as i32), "{}", lived.text);
}

/// The kernel ignores what such a process raises, and `abort` would wait for ever.
fn the_first_process_ends_as_well() {
    if !geteuid().is_root() || Command::new("unshare").arg("--version").output().is_err() {
        println!("NOT TESTED: this needs root and unshare");
        return;
    }
    for (what, signal) in [("stood-down", Signal::SIGSEGV), ("stood-down-abort", Signal::SIGABRT)] {
        let mut command = Command::new("timeout");
        command
            .args(["30", "unshare", "--pid", "--fork", "--kill-child"])
            .arg(env::current_exe().expect("this program"));
        let lived = run(what, command, |_| ());
        // unshare ends as what it has started.
        let code = lived.output.status.code().or(lived.output.status.signal().map(|signal| 128 + signal));
        assert_eq!(code, Some(128 + signal as i32), "{what}: {}", lived.text);
    }
}

fn a_signal_that_was_sent_ends_the_process() {
    let lived = lives("sent", |_| ());
    assert_eq!(lived.output.status.signal(), Some(Signal::SIGSEGV as i32), "{}", lived.text);
    assert!(kill(Pid::from_raw(lived.line("life 1 of ").parse().expect("a number")), None).is_err());
}

fn a_record_of_another_process_is_not_taken() {
    for record in ["", "0", "0000000000000001.0000000000000007"] {
        let lived = lives("forged", |command| _ = command.env("SDS_SHIM_SUCCESSOR", record));
        assert!(lived.output.status.success(), "{}", lived.text);
        lived.expect("life 1 of ");
    }
}

fn a_key_is_handed_on_where_nobody_could_have_read_it() {
    for (what, text) in [("key", TEXT.to_owned()), ("key-twice", TEXT.to_owned()), ("key-large", TEXT.repeat(2000))] {
        let lived = closed_lives(what);
        let made = lived.line("made ");
        let found = lived.line("found ");
        let (key, found) = found.split_at(made.len());
        assert_eq!(key, made, "{what}: {}", lived.text);
        assert!(text.starts_with(found.trim_start()), "{what}: {found}");
        let len = found.len() - 1;
        assert_eq!(len, if what == "key-large" { LARGE } else { TEXT.len() }, "{what}");
        lived.expect("descriptors 0");
        lived.expect("again false");
    }
    closed_lives("key-too-large").expect("lost: certificate and trust anchors take more than 32 KiB");
    let lived = lives("key", |_| ());
    // Nobody was asked for a text.
    assert!(!lived.text.contains("room "), "{}", lived.text);
    lived.expect("lost: another process of the same user could have read it");
    lived.expect("descriptors 0");
}

fn a_start_that_crashes_hands_the_key_on_once_more() {
    let lived = closed_lives("key-again");
    lived.expect(&format!("found {} {TEXT}", lived.line("made ")));
    lived.expect("crashes: 2");
}

fn a_signal_that_is_being_handled_is_handed_on() {
    lives("signal", |_| ()).expect("signal Some(15), then None");
    lives("signal-handled", |_| ()).expect("signal None, then None");
}

fn an_overwritten_record_is_not_taken() {
    for what in ["key-flipped", "key-text-flipped", "key-start-flipped"] {
        let lived = closed_lives(what);
        lived.expect("lost: it was overwritten");
        lived.expect("descriptors 0");
    }
}

/// Who crashes with what it has found, hands it on as well; but not what it has refused.
fn a_key_is_handed_on_until_another_takes_its_place() {
    for (what, found) in [("key-found", 2), ("key-forgotten", 1)] {
        let lived = closed_lives(what);
        assert_eq!(lived.text.matches("found ").count(), found, "{what}: {}", lived.text);
        assert_eq!(lived.text.matches("nothing").count(), 2 - found, "{what}: {}", lived.text);
        lived.expect("crashes: 2");
    }
}
