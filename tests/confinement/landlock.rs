//! What Landlock leaves of files, once all is open: a name that is made to lead elsewhere is followed without it, and
//! refused and told with it. Whatever the kernel lacks is told, and never ends the shim.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    confined::helper,
    fixture::{Logged, Site, names, secret},
    scratch::Scratch,
    sds,
    shim::ShimBuilder,
};

/// The version of the kernel's Landlock, if it has any.
fn version() -> Option<u32> {
    locked::landlock_version().ok()
}

/// A shim that has written its first generation to `output`, which was then made to lead to a directory elsewhere, and
/// was told to renew; with that directory.
async fn led_astray(edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<(Site, Logged, Scratch), Failure> {
    let (site, elsewhere) = (Site::new().await?, Scratch::new("elsewhere")?);
    let output = site.workload.path().join("output");
    let shim = Logged(edit(site.shim().env("OUTPUT_CERTS", output.display().to_string())).start()?);
    shim.until("the first generation", || output.join("key.pem").exists().then_some(())).await?;
    // Whatever the writer still has to do there is done once it has swept.
    fs::rename(&output, site.workload.path().join("before")).or_fail("move the directory")?;
    symlink(elsewhere.path(), &output).or_fail("lead it elsewhere")?;
    shim.signal(Signal::SIGUSR1)?;
    Ok((site, shim, elsewhere))
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

#[tokio::test]
async fn nothing_is_written_elsewhere() -> testkit::Result {
    let Some(version) = version() else { return Ok(()) };
    let (_site, shim, elsewhere) = led_astray(|shim| shim).await?;
    let line = shim.wait_for_log("sandbox: ").await?;
    assert!(line.contains(&format!("; Landlock (version {version}) restricts writing")), "{line}");
    let line = shim.wait_for_log("Permission denied").await?;
    assert!(line.contains("WARN") && line.contains("OUTPUT_CERTS="), "{line}");
    assert!(is_empty(elsewhere.path()));
    Ok(())
}

#[tokio::test]
async fn without_landlock_it_warns_and_serves() -> testkit::Result {
    let filter = helper("filtered")?.display().to_string();
    let off = |shim: ShimBuilder| shim.env("SDS_SHIM_LANDLOCK", "off");
    let missing = |shim: ShimBuilder| shim.through(&[&filter, "without-landlock", "--"]);
    for (started, told) in [
        (led_astray(off).await?, "; Landlock is off (SDS_SHIM_LANDLOCK)"),
        (led_astray(missing).await?, "; no Landlock: this kernel does not have it"),
    ] {
        let (_site, mut shim, elsewhere) = started;
        shim.wait_for_log(told).await?;
        shim.until("the key elsewhere", || elsewhere.path().join("key.pem").exists().then_some(())).await?;
        assert_eq!(shim.terminate().await?.code(), Some(0));
    }
    Ok(())
}

/// What older kernels lack is left out, and told: strace has the shim believe in an older version of the interface.
#[tokio::test]
async fn older_kernels_get_a_warning_and_what_they_support() -> testkit::Result {
    let Some(newest) = version() else { return Ok(()) };
    for older in 1..newest {
        let inject = format!("inject=landlock_create_ruleset:retval={older}:when=1");
        let calls = "trace=landlock_create_ruleset";
        let launcher =
            ["strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", "/dev/null", "-e", calls, "-e", &inject];
        let (_site, shim, elsewhere) = led_astray(|shim| shim.through(&launcher)).await?;
        let ports = if older < 4 { ", but not TCP ports, which takes Linux 6.7" } else { " and TCP ports" };
        shim.wait_for_log(&format!("; Landlock (version {older}) restricts writing{ports}")).await?;
        shim.wait_for_log("Permission denied").await?;
        assert!(is_empty(elsewhere.path()), "version {older}");
    }
    Ok(())
}

/// The file `extra/roots.pem` of a site, which becomes a link to a file elsewhere.
struct Extra {
    file: PathBuf,
    elsewhere: Scratch,
}

impl Extra {
    fn new(site: &Site) -> Result<Self, Failure> {
        let (file, elsewhere) = (site.workload.path().join("extra/roots.pem"), Scratch::new("elsewhere")?);
        fs::create_dir(site.workload.path().join("extra")).or_fail("make the directory")?;
        fs::write(&file, site.pki.root_pem()).or_fail("write the roots")?;
        fs::write(elsewhere.path().join("roots.pem"), testkit::development_ca::Pki::new("elsewhere").root_pem())
            .or_fail("write other roots")?;
        Ok(Self { file, elsewhere })
    }

    fn swap(&self) -> testkit::Result {
        let link = self.file.with_extension("new");
        symlink(self.elsewhere.path().join("roots.pem"), &link).or_fail("make a link")?;
        fs::rename(&link, &self.file).or_fail("swap it in")
    }
}

#[tokio::test]
async fn strict_reads_nothing_elsewhere() -> testkit::Result {
    if version().is_none() {
        return Ok(());
    }
    let site = Site::new().await?;
    let extra = Extra::new(&site)?;
    let shim = site.shim().env("SDS_SHIM_LANDLOCK", "strict");
    let mut shim = Logged(shim.env("SDS_SHIM_EXTRA_ROOTS", "./extra/roots.pem").start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default", "ROOTCA"]));
    let mut got = Vec::new();
    while got.len() < 2 {
        let answer = stream.recv().await?;
        stream.send(sds::ack(&answer, &["default", "ROOTCA"]));
        got.extend(names(&answer)?);
    }
    assert!(shim.wait_for_log("sandbox: ").await?.contains("restricts reading and writing"));
    extra.swap()?;
    let line = shim.wait_for_log("extra/roots.pem: ").await?;
    assert!(line.contains("Permission denied"), "{line}");
    // A file elsewhere cannot be named, and the name is told; one in the open directory can.
    let named = |file: &Path| format!("file-root:{}", file.display());
    let other = shim.connect().await?.stream();
    other.send(sds::request(&[&named(&extra.elsewhere.path().join("roots.pem"))]));
    let line = shim.wait_for_log("file-root:").await?;
    assert!(line.contains("Permission denied"), "{line}");
    // Renewal, the token and what the kernel tells of us are within reach.
    shim.signal(Signal::SIGUSR1)?;
    stream.recv().await?;
    assert_eq!(shim.admin("/metrics").await?.status, 200);
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn by_default_any_file_can_be_named_and_followed() -> testkit::Result {
    let site = Site::new().await?;
    let extra = Extra::new(&site)?;
    let mut shim = Logged(site.shim().env("SDS_SHIM_EXTRA_ROOTS", "./extra/roots.pem").start()?);
    let name = format!("file-root:{}", extra.elsewhere.path().join("roots.pem").display());
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&[&name]));
    let answer = stream.recv().await?;
    let elsewhere = fs::read_to_string(extra.elsewhere.path().join("roots.pem")).or_fail("read the roots")?;
    assert_eq!(secret(&answer, &name)?.trusted_ca_pem, elsewhere);
    Ok(())
}

/// A socket that is removed together with its directory is made anew: the sandbox leaves the directory above.
#[tokio::test]
async fn the_sockets_directory_can_be_recreated() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().start()?);
    shim.connect().await?;
    let directory = site.workload.path().join("var/run/secrets/workload-spiffe-uds");
    fs::remove_dir_all(&directory).or_fail("remove the directory")?;
    shim.wait_for_log("the SDS socket had been removed and was recreated").await?;
    shim.connect().await?;
    Ok(())
}

/// A command is in no domain that keeps it from files, and is signalled from inside ours.
#[tokio::test]
async fn a_command_is_not_bound_and_is_still_signalled() -> testkit::Result {
    let (site, elsewhere) = (Site::new().await?, Scratch::new("elsewhere")?);
    let file = elsewhere.path().join("written").display().to_string();
    let script = "trap 'echo written > \"$0\"; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut shim = Logged(site.shim().exec(&["sh", "-c", script, &file]).start()?);
    shim.wait_for_log("ready").await?;
    shim.wait_for_log("; Landlock ").await?;
    assert_eq!(shim.terminate().await?.code(), Some(7));
    assert_eq!(fs::read_to_string(elsewhere.path().join("written")).or_fail("read it")?, "written\n");
    Ok(())
}

/// What code that somebody else runs in a serving process reaches.
#[cfg(target_arch = "x86_64")]
mod probe {
    use nix::{errno::Errno, libc};
    use testkit::inside::Inside;

    use super::*;

    struct Outcomes {
        read: Result<u64, Errno>,
        write: Result<u64, Errno>,
        connect: Result<u64, Errno>,
        listen: Result<u64, Errno>,
        abstract_socket: Result<u64, Errno>,
        netlink: Result<u64, Errno>,
        signal: Result<u64, Errno>,
    }

    fn socket_address(port: u16) -> [u8; 16] {
        let [high, low] = port.to_be_bytes();
        [2, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    async fn probe(site: &Site, shim: &Logged, elsewhere: &Path) -> Result<Outcomes, Failure> {
        shim.wait_for_log("sandbox: ").await?;
        let file = elsewhere.join("secret");
        fs::write(&file, "secret").or_fail("write a file")?;
        let inside = Inside::of(shim.pid().cast_signed())?;
        let here = libc::AT_FDCWD as u64;
        let open = |flags: i32| inside.call(libc::SYS_openat, &[here, inside.path(&file)?, flags as u64, 0o600]);
        let socket = |family: i32, kind: i32| inside.call(libc::SYS_socket, &[family as u64, kind as u64, 0]);
        let with = |family: i32, call, address: &[u8]| {
            let Ok(socket) = socket(family, libc::SOCK_STREAM)? else { return Err(Failure::new("no socket")) };
            inside.call(call, &[socket, inside.place(address)?, address.len() as u64])
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").or_fail("listen")?;
        let port = listener.local_addr().or_fail("look at the port")?.port();
        let name = [&[1, 0, 0][..], site.workload.path().as_os_str().as_encoded_bytes()].concat();
        Ok(Outcomes {
            read: open(libc::O_RDONLY)?,
            write: open(libc::O_WRONLY | libc::O_TRUNC)?,
            connect: with(libc::AF_INET, libc::SYS_connect, &socket_address(port))?,
            listen: with(
                libc::AF_INET,
                libc::SYS_bind,
                &socket_address(testkit::port::unshared().or_fail("find a port")?),
            )?,
            abstract_socket: with(libc::AF_UNIX, libc::SYS_connect, &name)?,
            netlink: socket(libc::AF_NETLINK, libc::SOCK_RAW)?,
            signal: inside.call(libc::SYS_kill, &[std::process::id().into(), libc::SIGURG as u64])?,
        })
    }

    #[tokio::test]
    async fn code_in_a_process_without_sandbox_reaches_all_of_it() -> testkit::Result {
        let (site, elsewhere) = (Site::new().await?, Scratch::new("elsewhere")?);
        let off = site.shim().env("SDS_SHIM_SECCOMP", "off").env("SDS_SHIM_LANDLOCK", "off");
        let shim = Logged(off.start()?);
        shim.wait_for_log("sandbox: seccomp is off (SDS_SHIM_SECCOMP); Landlock is off (SDS_SHIM_LANDLOCK)").await?;
        let found = probe(&site, &shim, elsewhere.path()).await?;
        for outcome in [found.read, found.write, found.connect, found.listen, found.netlink, found.signal] {
            outcome.or_fail("reach it")?;
        }
        // Nobody listens there.
        assert_eq!(found.abstract_socket, Err(Errno::ECONNREFUSED));
        Ok(())
    }

    /// What is left for a successor executes nothing but the shim: another descriptor and its replacement are the filter's
    /// to refuse, and another path, which a filter cannot read, is the domain's.
    #[tokio::test]
    async fn code_in_a_process_executes_no_other_program_in_place_of_a_successor() -> testkit::Result {
        if version().is_none() {
            return Ok(());
        }
        let site = Site::new().await?;
        let mut shim = Logged(site.shim().start()?);
        shim.wait_for_log("sandbox: ").await?;
        let program = testkit::shim::program()?.canonicalize().or_fail("find the shim")?;
        let descriptors = fs::read_dir(format!("/proc/{}/fd", shim.pid())).or_fail("list its descriptors")?;
        let is_image = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|target| target == program);
        let image =
            descriptors.flatten().find(is_image).and_then(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let image = image.ok_or_else(|| Failure::new("it has no descriptor of its program"))?;
        let inside = Inside::of(shim.pid().cast_signed())?;
        let (other, here, empty) = (Path::new("/bin/true"), libc::AT_FDCWD as u64, libc::AT_EMPTY_PATH as u64);
        let open = inside.call(libc::SYS_openat, &[here, inside.path(other)?, libc::O_PATH as u64])?;
        let opened = open.or_fail("open another program")?;
        let exec = |descriptor: u64, path: &str, flags: u64| {
            inside.call(libc::SYS_execveat, &[descriptor, inside.path(Path::new(path))?, 0, 0, flags])
        };
        assert_eq!(exec(image, "/bin/true", empty)?, Err(Errno::EACCES));
        assert_eq!(exec(image, "true", empty)?, Err(Errno::ENOTDIR));
        assert_eq!(exec(opened, "", empty)?, Err(Errno::EPERM));
        assert_eq!(exec(image, "", 0)?, Err(Errno::EPERM));
        assert_eq!(inside.call(libc::SYS_close, &[image])?, Err(Errno::EPERM));
        assert_eq!(inside.call(libc::SYS_dup2, &[opened, image])?, Err(Errno::EPERM));
        drop(inside);
        assert_eq!(shim.admin("/status").await?.status, 200);
        assert_eq!(shim.terminate().await?.code(), Some(0));
        Ok(())
    }

    #[tokio::test]
    async fn code_in_a_process_reaches_nothing_that_serving_does_not_need() -> testkit::Result {
        for (level, reads) in [("on", true), ("strict", false)] {
            let (site, elsewhere) = (Site::new().await?, Scratch::new("elsewhere")?);
            let mut shim = Logged(site.shim().env("SDS_SHIM_LANDLOCK", level).start()?);
            let found = probe(&site, &shim, elsewhere.path()).await?;
            let domain = version().unwrap_or(0);
            let denied =
                |since: u32, outcome: Result<u64, Errno>, error: Errno| domain < since || outcome == Err(error);
            assert_eq!(domain == 0 || reads, found.read.is_ok(), "{level}: {:?}", found.read);
            assert!(denied(1, found.write, Errno::EACCES), "{level}: {:?}", found.write);
            assert!(denied(4, found.connect, Errno::EACCES), "{level}: {:?}", found.connect);
            assert!(denied(4, found.listen, Errno::EACCES), "{level}: {:?}", found.listen);
            // Nobody listens there, which one who may look would be told.
            let told = if domain < 6 { Errno::ECONNREFUSED } else { Errno::EPERM };
            assert!([Err(told), Err(Errno::ECONNREFUSED)].contains(&found.abstract_socket), "{level}");
            let inside = Inside::of(shim.pid().cast_signed())?;
            let program = inside.call(libc::SYS_execve, &[inside.path(Path::new("/bin/true"))?, 0, 0])?;
            drop(inside);
            for outcome in [program, found.netlink, found.signal] {
                assert_eq!(outcome, Err(Errno::EPERM), "{level}");
            }
            // It goes on as if nothing had happened.
            let status = shim.admin("/status").await?;
            assert!(String::from_utf8_lossy(&status.body).contains("\"sandbox\":\"seccomp rejects"), "{level}");
            shim.signal(Signal::SIGUSR1)?;
            assert_eq!(shim.terminate().await?.code(), Some(0));
        }
        Ok(())
    }
}
