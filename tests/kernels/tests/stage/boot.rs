//! One guest for each kernel: an initramfs with the shim and the guest's programs, QEMU, and the facts that come out.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use openssl::hash::{MessageDigest, hash};
use serde_json::{Value, json};
use testkit::{Failure, OrFail, POLL, process::Process, scratch::Scratch, shim, workspace};
use tokio::time::{Instant, sleep};

/// How long one guest may take. It only bounds failures: on an idle machine all scenes are through in a sixth of it.
const PATIENCE: Duration = Duration::from_secs(7200);

/// The file beside a kernel with what its last guest has said.
const KEPT: &str = "facts.json";

/// What a shim takes, times 128, and the guest's own.
const MEMORY_MIB: &str = "3072";

/// What guests of one architecture are made with.
pub(crate) struct Architecture {
    /// As Debian and containers write it.
    pub(crate) name: &'static str,
    machine: &'static str,
    qemu: &'static str,
    /// Its words for QEMU, beside those for all.
    words: &'static str,
    console: &'static str,
}

static ARCHITECTURES: [Architecture; 2] = [
    Architecture { name: "amd64", machine: "x86_64", qemu: "qemu-system-x86_64", words: "-cpu max", console: "ttyS0" },
    Architecture {
        name: "arm64",
        machine: "aarch64",
        qemu: "qemu-system-aarch64",
        // Signed pointers in a cipher of QEMU's own: the architecture's takes half of the time of the guest.
        words: "-machine virt -cpu max,pauth-impdef=on",
        console: "ttyAMA0",
    },
];

impl Architecture {
    fn is_own(&self) -> bool {
        self.machine == std::env::consts::ARCH
    }

    /// The shipped binary that `make build ARCH=...` makes.
    pub(crate) fn shim(&self) -> Result<PathBuf, Failure> {
        if self.is_own() {
            return shim::program();
        }
        Ok(workspace().join(format!("target/dist-{}/sds-shim", self.name)))
    }

    fn busybox(&self) -> PathBuf {
        match self.is_own() {
            true => first(&["/bin/busybox", "/usr/bin/busybox"]),
            false => workspace().join(format!("target/kernels/busybox-{}", self.name)),
        }
    }

    /// Whether the programs are there that its guests are made with.
    pub(crate) fn equipped(&self) -> bool {
        let there = |program: &&str| {
            Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        [self.qemu, "cpio"].iter().all(there) && self.busybox().is_file()
    }
}

/// A kernel that `tests/kernels/kernels` names.
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) architecture: &'static Architecture,
    /// What it is booted with besides.
    pub(crate) parameters: String,
}

impl Kernel {
    fn directory(&self) -> PathBuf {
        workspace().join("target/kernels").join(&self.name)
    }

    /// Whether it has been fetched.
    pub(crate) fn present(&self) -> bool {
        self.directory().join("vmlinuz").is_file()
    }

    /// Package and version.
    pub(crate) fn version(&self) -> String {
        fs::read_to_string(self.directory().join("version")).unwrap_or_default().trim().to_owned()
    }
}

/// The kernels named, or all.
pub(crate) fn kernels(wanted: Option<&str>) -> Result<Vec<Kernel>, Failure> {
    let list = workspace().join("tests/kernels/kernels");
    let list = fs::read_to_string(list).or_fail("read the list of kernels")?;
    let lines = list.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let kernels = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let wanted = words.next()?;
        let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == wanted)?;
        Some(Kernel { name, architecture, parameters: words.skip(4).collect::<Vec<_>>().join(" ") })
    });
    let kernels: Vec<_> = match wanted {
        Some(wanted) => kernels.filter(|kernel| wanted.split_whitespace().any(|name| name == kernel.name)).collect(),
        None => kernels.collect(),
    };
    if kernels.is_empty() {
        return Err(Failure::new("KERNELS names none of those in tests/kernels/kernels"));
    }
    Ok(kernels)
}

/// A file system with all that a guest has, removed when it is dropped.
pub(crate) struct Initramfs {
    image: PathBuf,
    _scratch: Scratch,
}

/// Packs it.
pub(crate) fn initramfs(architecture: &Architecture) -> Result<Initramfs, Failure> {
    let scratch = Scratch::new("tests")?;
    let root = scratch.path().join("root");
    for directory in ["bin", "dev", "etc", "pods", "proc", "sys", "tests", "tmp"] {
        fs::create_dir_all(root.join(directory)).or_fail("make the guest's directories")?;
        let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(root.join(directory), mode).or_fail("set the mode of a directory")?;
    }
    let built = workspace().join(format!("target/{}-unknown-linux-gnu", architecture.machine));
    let programs = [
        ("busybox", architecture.busybox()),
        ("sds-shim", architecture.shim()?),
        ("kernel-guest", built.join("release/kernel-guest")),
        ("secret-pages", built.join("release/examples/secret_pages")),
    ];
    for (name, from) in programs {
        copy(&from, &root.join("bin").join(name))?;
    }
    let tests = fs::read_to_string(built.join("guest-tests")).or_fail("read where the tests for the guest are")?;
    for test in tests.lines().map(Path::new) {
        copy(test, &root.join("tests").join(test.file_name().unwrap_or_default()))?;
    }
    copy(&workspace().join("tests/kernels/init"), &root.join("init"))?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").or_fail("write the guest's hosts")?;
    let image = scratch.path().join("initramfs");
    let pack = "cd \"$0\" && find . | cpio --quiet -o -H newc -R 0:0 >\"$1\"";
    let status = Command::new("sh").args(["-c", pack]).arg(&root).arg(&image).status().or_fail("run cpio")?;
    if !status.success() {
        return Err(Failure::new("cpio could not pack the guest's file system"));
    }
    Ok(Initramfs { image, _scratch: scratch })
}

fn first(paths: &[&str]) -> PathBuf {
    paths.iter().map(PathBuf::from).find(|path| path.is_file()).unwrap_or_default()
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to).or_fail(format!("copy {} for the guest; `make test-kernels` makes it", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).or_fail("make a program executable")
}

/// What a guest has said.
pub(crate) struct Run {
    pub(crate) kernel: Kernel,
    pub(crate) facts: Vec<Value>,
    /// Whether the guest came to its end.
    pub(crate) complete: bool,
}

/// Boots a kernel, has the scenes played, and waits for its end. The console stays beside the kernel.
pub(crate) async fn run(kernel: Kernel, initramfs: &Initramfs, scenes: &str) -> Result<Run, Failure> {
    // A word behind the dashes is an argument of the first process.
    let architecture = kernel.architecture;
    let console = architecture.console;
    let parameters = format!("console={console} quiet loglevel=1 panic=-1 {} -- {scenes}", kernel.parameters);
    let image = kernel.directory().join("vmlinuz");
    let words = "-accel tcg,thread=multi -smp 2 -nodefaults -display none -serial stdio -no-reboot -m";
    let mut arguments: Vec<String> = architecture.words.split(' ').chain(words.split(' ')).map(str::to_owned).collect();
    arguments.push(MEMORY_MIB.to_owned());
    let more = [("-kernel", image.display().to_string()), ("-initrd", initramfs.image.display().to_string())];
    arguments.extend(more.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
    arguments.extend(["-append".to_owned(), parameters]);
    let name = format!("the guest of {}", kernel.name);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut qemu = Process::start(
        &name,
        Path::new(architecture.qemu),
        &arguments,
        &[("PATH".to_owned(), path)],
        &kernel.directory(),
    )?;
    let deadline = Instant::now() + PATIENCE;
    let console = kernel.directory().join("console");
    let mut written = usize::MAX;
    while qemu.exited().is_none() && Instant::now() < deadline {
        sleep(POLL).await;
        // Whoever waits for it may want to look.
        if qemu.log().mark() != written {
            written = qemu.log().mark();
            fs::write(&console, qemu.log().lines().join("\n")).or_fail("write the console")?;
        }
    }
    let ended = qemu.exited().is_some();
    if !ended {
        qemu.signal(Signal::SIGKILL)?;
    }
    // All that it said has been read then.
    qemu.wait_exit().await?;
    let lines = qemu.log().lines();
    fs::write(&console, lines.join("\n") + "\n").or_fail("write the console")?;
    // QEMU's own first line has no end.
    let facts = lines.iter().filter_map(|line| line.split_once("fact: ")).filter_map(|(_, fact)| parse(fact)).collect();
    let complete = ended && lines.iter().any(|line| line.trim() == "kernel-guest ended with 0");
    Ok(Run { kernel, facts, complete })
}

fn parse(fact: &str) -> Option<Value> {
    serde_json::from_str(fact).ok()
}

/// Keeps what a guest has said beside its kernel, so that one table can come of several runs.
pub(crate) fn keep(run: &Run, scenes: &str) -> Result<(), Failure> {
    let kept = json!({
        "binary": fingerprint(run.kernel.architecture)?, "version": run.kernel.version(), "scenes": scenes, "complete": run.complete, "facts": run.facts,
    });
    fs::write(run.kernel.directory().join(KEPT), kept.to_string()).or_fail("keep what the guest has said")
}

/// What was kept of a kernel, if it was of this binary, this version and these scenes.
pub(crate) fn kept(kernel: Kernel, scenes: &str) -> Result<Option<Run>, Failure> {
    let Ok(text) = fs::read_to_string(kernel.directory().join(KEPT)) else { return Ok(None) };
    let mut kept: Value = serde_json::from_str(&text).or_fail("read what the guest has said")?;
    let wanted =
        [("binary", fingerprint(kernel.architecture)?), ("version", kernel.version()), ("scenes", scenes.to_owned())];
    if wanted.iter().any(|(name, value)| kept[*name] != **value) {
        return Ok(None);
    }
    let facts = kept["facts"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(Some(Run { kernel, facts, complete: kept["complete"] == true }))
}

/// What tells the shim's binary from all others.
fn fingerprint(architecture: &Architecture) -> Result<String, Failure> {
    let binary = fs::read(architecture.shim()?).or_fail("read the shim's binary")?;
    let digest = hash(MessageDigest::sha256(), &binary).or_fail("hash the shim's binary")?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
