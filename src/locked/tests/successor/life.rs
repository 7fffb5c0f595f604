//! What such a process does: its first life crashes, the second tells.

use super::*;

/// The first life crashes, the second tells.
pub(super) fn live(what: &str, inherited: Inherited) -> ExitCode {
    // The standard library's hook would look for symbols: with more memory than the arena has, so it would hang.
    panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    if let Some(crash) = locked::last_crash()
        && what != "loop"
    {
        if what.starts_with("key") {
            find_key(what, crash.crashes);
        }
        if what.starts_with("signal") {
            // A start may crash before anybody looks.
            if what == "signal" && crash.crashes == 1 {
                fault(8);
            }
            println!("signal {:?}, then {:?}", locked::inherited_signal(), locked::inherited_signal());
        }
        tell(&crash);
        return ExitCode::SUCCESS;
    }
    println!("life {} of {}", locked::last_crash().map_or(1, |crash| crash.crashes + 1), getpid());
    if what == "forged" {
        return ExitCode::SUCCESS;
    }
    locked::stand_by().expect("the kernel has what it takes");
    if what == "handed-on" {
        hand_on(inherited);
    }
    if what.starts_with("stood-down") {
        locked::stand_down();
    }
    if what.starts_with("key") {
        hand_on_key(what);
    }
    if what.starts_with("signal") {
        take_signal(what == "signal-handled");
    }
    crash(what);
    println!("alive after {what}");
    ExitCode::FAILURE
}

fn hand_on(inherited: Inherited) {
    let path = env::var("SOCKET").expect("a path");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("bind it");
    locked::hand_on_listener(Listener::First, listener.as_fd(), (3, 5));
    std::mem::forget(listener);
    let path = format!("{path}-2");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("bind another");
    locked::hand_on_listener(Listener::Second, listener.as_fd(), (7, 9));
    std::mem::forget(listener);
    let this = env::current_exe().expect("this program").into_os_string();
    let command = inherited.spawn(this, vec![OsString::from("as-command")]).expect("start a command");
    println!("command {}", command.pid);
}

pub(super) const TEXT: &str = "what belongs to it";

/// 32 KiB without a checksum and the PEM of a P-256 key.
pub(super) const LARGE: usize = (32 << 10) - 8 - 241;

/// Hands on a key, and overwrites what is said.
fn hand_on_key(what: &str) {
    locked::open_secret_memory(Need::Usual);
    let key = locked::generate_ec_key(Nid::X9_62_PRIME256V1).expect("make a key");
    println!("made {:?}", key.public_key_to_der().expect("its public half"));
    let hand_on = |text: Vec<u8>| {
        let pem = locked::write_private_key(&key, Structure::Pkcs8).expect("write it");
        let places = [pem.as_ptr(), text.as_ptr()];
        locked::hand_on_key(pem, |room| {
            println!("room {room}");
            Some(text)
        });
        places.map(<*const u8>::cast_mut)
    };
    if what == "key-twice" {
        hand_on(b"what belonged to it".to_vec());
    }
    // As much as there is room for beside a key of this kind, and one byte more.
    let length = match what {
        "key-large" => LARGE,
        "key-too-large" => LARGE + 1,
        _ => TEXT.len(),
    };
    let [pem, text] = hand_on(TEXT.bytes().cycle().take(length).collect());
    let flipped = match what {
        // Its last character before the padding, which stands in the public half, or the first of the private one.
        "key-flipped" => Some(pem.wrapping_add(80)),
        "key-text-flipped" => Some(text),
        // SAFETY: the name is a C string, and nobody changes the environment.
        "key-start-flipped" => Some(unsafe { libc::getenv(c"FLIPPED".as_ptr()) }.cast()),
        _ => None,
    };
    if let Some(place) = flipped {
        // SAFETY: it is a byte that stays there for as long as the process, and nobody else uses.
        unsafe { *place ^= 1 };
    }
}

/// Takes a signal as the shim does.
fn take_signal(is_handled: bool) {
    let wanted = SigSet::from(Signal::SIGTERM);
    wanted.thread_block().expect("block it");
    let signals = SignalFd::new(&wanted).expect("a signalfd");
    raise(Signal::SIGTERM).expect("send it");
    assert_eq!(locked::take_signal(signals.as_fd()).expect("it is there").ssi_signo, libc::SIGTERM as u32);
    if is_handled {
        locked::signal_is_handled();
    }
}

fn find_key(what: &str, crashes: u64) {
    if what == "key-again" && crashes == 1 {
        fault(8);
    }
    locked::open_secret_memory(Need::Usual);
    let links = || std::fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
    let secret = links()
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|link| link.to_string_lossy().contains("secretmem")));
    println!("descriptors {}", secret.count());
    match locked::inherited_key() {
        Some(Ok((key, text))) => println!("found {:?} {text}", key.public_key_to_der().expect("its public half")),
        Some(Err(why)) => println!("lost: {why}"),
        None => println!("nothing"),
    }
    println!("again {}", locked::inherited_key().is_some());
    if what == "key-forgotten" {
        locked::hand_on_no_key();
    }
    if ["key-forgotten", "key-found"].contains(&what) && crashes == 1 {
        locked::stand_by().expect("the kernel has what it takes");
        fault(8);
    }
}

fn tell(crash: &Crash) {
    println!("pid {} args {:?} crash {crash:?}", getpid(), env::args().skip(1).collect::<Vec<_>>());
    println!("told: {crash}");
    println!("variable {:?}", env::var("SDS_SHIM_SUCCESSOR"));
    if let Some((pid, ended)) = locked::inherited_command() {
        let reaped = (0..100).find_map(|_| {
            thread::sleep(std::time::Duration::from_millis(20));
            locked::reap()
        });
        println!("inherited {pid} {ended:?} {reaped:?}");
    }
    for which in [Listener::First, Listener::Second] {
        match locked::inherited_listener(which) {
            Some((socket, identity)) => {
                let path = UnixListener::from(socket).local_addr().expect("it is a socket");
                println!("listener {which:?} {:?} {identity:?}", path.as_pathname());
            }
            None => println!("no listener {which:?}"),
        }
    }
    println!("name {}", std::fs::read_to_string("/proc/self/comm").unwrap_or_default().trim());
    println!("mask {:?}", nix::sys::signal::SigSet::thread_get_mask().map(|set| set.iter().count()));
}

fn crash(what: &str) {
    match what {
        "panic" => panic!("a mistake"),
        "full" => {
            let layout = Layout::from_size_align(1 << 30, 8).expect("a layout");
            // SAFETY: the size is not 0.
            let block = unsafe { ALLOCATOR.alloc(layout) };
            assert!(block.is_null());
            std::alloc::handle_alloc_error(layout);
        }
        "stack" => println!("depth {}", descend(0)),
        "thread" => drop(thread::spawn(|| fault(8)).join()),
        "fault" | "loop" | "stood-down" | "handed-on" => fault(8),
        _ if what.starts_with("key") || what.starts_with("signal") => fault(8),
        "elsewhere" => fault(0x7000_0000_1000),
        "illegal" => illegal(),
        "trap" => trap(),
        "abort" | "stood-down-abort" => std::process::abort(),
        "float" => drop(raise(Signal::SIGFPE)),
        "bus" => drop(raise(Signal::SIGBUS)),
        "sys" => drop(raise(Signal::SIGSYS)),
        "sent" => {
            let this = getpid().to_string();
            let status = Command::new(env::current_exe().expect("this program")).args(["as-killer", &this]).status();
            println!("sent: {status:?}");
            thread::sleep(Duration::from_secs(10));
        }
        _ => println!("unknown: {what}"),
    }
}

#[expect(unconditional_recursion, reason = "it is to overflow")]
fn descend(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    descend(depth + 1) + black_box(room)[7]
}

fn fault(address: usize) {
    // SAFETY: nothing is there, which is what is wanted.
    let byte = unsafe { (black_box(address) as *const u8).read_volatile() };
    println!("read {byte}");
}

fn illegal() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it ends what runs.
    unsafe {
        std::arch::asm!("ud2");
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("udf #0");
    }
}

fn trap() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it ends what runs.
    unsafe {
        std::arch::asm!("int3");
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("brk #1");
    }
}
