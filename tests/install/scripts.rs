//! The scripts that install what builds and tests need: two terminals, a network that fails now and then, a machine on
//! which something is missing.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use testkit::{Failure, OrFail, fixture::write_program, process::Process, scratch::Scratch, workspace};

const SHARED: &str = "tests/testkit/install.sh";
const PROBE: &str = "tests/testkit/install-probe.sh";
/// What the scripts need of every machine before they can say what it lacks.
const ESSENTIAL: &[&str] =
    &["basename", "bash", "cat", "cut", "dirname", "env", "flock", "id", "mkdir", "sh", "sha256sum", "true"];

/// A tree with the scripts that a test names, and nothing else.
struct Tree(Scratch);

impl Tree {
    fn new(scripts: &[&str]) -> Result<Self, Failure> {
        let tree = Self(Scratch::new("tests")?);
        for script in scripts {
            let target = tree.path().join(script);
            fs::create_dir_all(target.parent().unwrap_or(tree.path())).or_fail("make a directory")?;
            fs::copy(workspace().join(script), target).or_fail(format!("copy {script}"))?;
        }
        Ok(tree)
    }

    /// With a script like those that install something, which has found that there is something to do.
    fn with_probe(body: &str) -> Result<Self, Failure> {
        let tree = Self::new(&[SHARED])?;
        let text = format!(
            "#!/bin/sh\nset -eu\nroot={}\n[ ! -e \"$root/installed\" ] || exit 0\n. \"$root/{SHARED}\"\n{body}\n",
            tree.path().display()
        );
        let probe = tree.path().join(PROBE);
        write_program(&probe, &text)?;
        Ok(tree)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn start(&self, script: &str, arguments: &[&str], env: &[(&str, &str)]) -> Result<Process, Failure> {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let usual = [("PATH", "/usr/bin:/bin")];
        let env: Vec<_> = usual.iter().chain(env).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Process::start(script, &self.path().join(script), &arguments, &env, self.path())
    }

    /// A directory for PATH with what every machine has, and these programs of ours.
    fn programs(&self, more: &[&str]) -> Result<PathBuf, Failure> {
        let directory = self.path().join("bin");
        fs::create_dir(&directory).or_fail("make a directory")?;
        for name in ESSENTIAL.iter().chain(more) {
            symlink(Path::new("/usr/bin").join(name), directory.join(name)).or_fail(format!("link {name}"))?;
        }
        Ok(directory)
    }
}

/// Runs a script to its end and answers with its exit code and all that it said.
async fn ended(mut process: Process) -> Result<(Option<i32>, String), Failure> {
    let code = process.wait_exit().await?.code();
    Ok((code, process.log().lines().join("\n")))
}

#[tokio::test]
async fn two_at_a_time_wait_for_each_other_and_install_once() -> testkit::Result {
    let body = "say 'has begun'\nread -r line <\"$root/go\"\necho \"$line\" >>\"$root/installed\"";
    let tree = Tree::with_probe(body)?;
    let go = tree.path().join("go");
    mkfifo(&go, Mode::S_IRUSR | Mode::S_IWUSR).or_fail("make a pipe")?;
    let first = tree.start(PROBE, &[], &[])?;
    first.wait_for_log("install-probe: has begun").await?;
    let second = tree.start(PROBE, &[], &[])?;
    second.wait_for_log("install-probe: waiting for another run of this in ").await?;
    fs::write(&go, "once\n").or_fail("let it go on")?;
    let (first, second) = (ended(first).await?, ended(second).await?);
    assert_eq!((first.0, second.0), (Some(0), Some(0)), "{}\n{}", first.1, second.1);
    assert_eq!(fs::read_to_string(tree.path().join("installed")).or_fail("read what was installed")?, "once\n");
    Ok(())
}

#[tokio::test]
async fn a_scripts_own_helpers_do_not_wait_for_its_lock() -> testkit::Result {
    let tree = Tree::with_probe("[ -n \"${inner:-}\" ] || inner=1 \"$0\"\nsay \"done ${inner:-}\"")?;
    let (code, told) = ended(tree.start(PROBE, &[], &[])?).await?;
    assert_eq!((code, told.as_str()), (Some(0), "install-probe: done 1\ninstall-probe: done"));
    Ok(())
}

#[tokio::test]
async fn a_download_that_fails_once_is_tried_again() -> testkit::Result {
    let download = "download() { echo x >>\"$root/tries\"; [ \"$(wc -l <\"$root/tries\")\" -ge \"$1\" ]; }\n";
    for (succeeds, code) in [("2", 0), ("3", 0), ("4", 1)] {
        let tree = Tree::with_probe(&format!("{download}retry download {succeeds} || fail 'it cannot be had'"))?;
        let (ended, told) = ended(tree.start(PROBE, &[], &[("pauses", "0 0")])?).await?;
        assert_eq!(ended, Some(code), "{told}");
        assert!(told.contains(&format!("install-probe: again in 0 s: download {succeeds}")), "{told}");
        assert_eq!(told.contains("install-probe: it cannot be had"), code == 1, "{told}");
    }
    Ok(())
}

/// Images with Go in them often say `local`, with which a module that wants a newer Go cannot be built.
#[tokio::test]
async fn go_may_always_fetch_the_go_that_a_module_wants() -> testkit::Result {
    let tree = Tree::with_probe("say \"$(sh -c 'echo $GOTOOLCHAIN')\"")?;
    let (code, told) = ended(tree.start(PROBE, &[], &[("GOTOOLCHAIN", "local")])?).await?;
    assert_eq!((code, told.as_str()), (Some(0), "install-probe: auto"));
    Ok(())
}

#[tokio::test]
async fn missing_packages_are_listed_where_they_cannot_be_installed() -> testkit::Result {
    let script = "tests/testkit/install-packages.sh";
    let tree = Tree::new(&[SHARED, script])?;
    let path = tree.programs(&[])?.display().to_string();
    let process = tree.start(script, &["two packages", "sh", "no-such-a", "no-such-b"], &[("PATH", &path)])?;
    let (code, told) = ended(process).await?;
    let expected =
        "install-packages: missing: no-such-a no-such-b, and there is no apt-get to install two packages with";
    assert_eq!((code, told.as_str()), (Some(1), expected));
    Ok(())
}

/// Debian keeps iptables where a user's shell does not look.
#[tokio::test]
async fn programs_outside_of_a_users_path_are_found() -> testkit::Result {
    let script = "tests/testkit/install-packages.sh";
    // Without the shared part it can install nothing.
    let tree = Tree::new(&[script])?;
    let (code, told) = ended(tree.start(script, &["iptables", "iptables-restore"], &[])?).await?;
    assert_eq!((code, told.as_str()), (Some(0), ""), "run make pod-network");
    Ok(())
}

#[tokio::test]
async fn openssl_is_not_built_without_a_compiler() -> testkit::Result {
    let script = "packaging/openssl/build.sh";
    let parts = ["packaging/openssl/trim.sh", "packaging/openssl/Cargo.toml", "packaging/link/architecture.sh"];
    let tree = Tree::new(&[&[SHARED, script][..], &parts].concat())?;
    let path = tree.programs(&["perl", "make", "uname"])?.display().to_string();
    let (code, told) = ended(tree.start(script, &[], &[("PATH", &path)])?).await?;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.starts_with("openssl: missing: perl with its modules, make, or a C compiler"), "{told}");
    Ok(())
}

/// What `make build` runs to learn how cargo builds the standard library, with a Rust whose source rustup adds or not.
async fn flags(rustup: &str) -> Result<(String, String), Failure> {
    let tree = Tree::new(&[SHARED, "packaging/std/flags.sh", "packaging/std/install.sh"])?;
    let path = tree.programs(&["sleep"])?;
    write_program(&path.join("rustc"), &format!("#!/bin/sh\necho {}\n", tree.path().display()))?;
    write_program(&path.join("rustup"), &format!("#!/bin/sh\necho \"rustup: $*\"\n{rustup}\n"))?;
    write_program(&path.join("ask"), "#!/bin/sh\nflags=$(packaging/std/flags.sh 2>said)\necho \"$flags\"\n")?;
    let path = path.display().to_string();
    let (code, flags) = ended(tree.start("bin/ask", &[], &[("PATH", &path), ("pauses", "0")])?).await?;
    assert_eq!(code, Some(0), "{flags}");
    Ok((flags, fs::read_to_string(tree.path().join("said")).or_fail("read what it said")?))
}

#[tokio::test]
async fn the_first_build_has_its_own_standard_library() -> testkit::Result {
    let library = "lib/rustlib/src/rust/library";
    let (flags, said) = flags(&format!("mkdir -p {library}\ntrue >{library}/Cargo.lock")).await?;
    assert!(flags.starts_with("-Zbuild-std=") && flags.lines().count() == 1, "{flags}");
    assert!(
        said.contains("installing the standard library's source") && said.contains("rustup: component add"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn without_std_sources_the_compiled_std_is_used_and_its_cost_reported() -> testkit::Result {
    let (flags, said) = flags("exit 1").await?;
    assert_eq!(flags, "");
    assert!(said.contains("320 KiB larger"), "{said}");
    Ok(())
}

/// Whoever installs something by himself waits for nobody and tries nothing again.
#[test]
fn every_script_installs_by_what_they_share() {
    let directory = workspace().join("tests/testkit");
    let scripts = fs::read_dir(&directory).expect("the scripts").map(|entry| entry.expect("an entry").path());
    let installing =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("install-"));
    let mut scripts: Vec<_> = scripts.filter(installing).collect();
    assert!(scripts.len() > 8, "{scripts:?}");
    scripts.extend(
        ["openssl/build.sh", "link/install.sh", "std/install.sh"].map(|name| workspace().join("packaging").join(name)),
    );
    for path in scripts {
        let text = fs::read_to_string(&path).expect("a script");
        assert!(text.contains("\n. \"$root/tests/testkit/install.sh\"\n"), "{} does not share", path.display());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            for alone in ["apt-get -", "apt-get update", "apt-get install", "apt-get download"] {
                assert!(!line.contains(alone), "{}: {line}", path.display());
            }
        }
    }
}
