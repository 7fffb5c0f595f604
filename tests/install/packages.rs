//! What `make deb` makes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{Failure, OrFail, scratch::Scratch, shim::cross_compiled, workspace};

use crate::machine::{Machine, run};

/// Makes the package of this machine's architecture in `directory`.
pub(crate) fn package(directory: &Path) -> Result<PathBuf, Failure> {
    let architecture = run(Command::new("dpkg").arg("--print-architecture"))?;
    let mut script = Command::new(workspace().join("packaging/debian/build.sh"));
    run(script.arg(architecture.trim()).env("DEB_DIRECTORY", directory))?;
    let name = format!("sds-shim_{}_{}.deb", env!("CARGO_PKG_VERSION"), architecture.trim());
    Ok(directory.join(name))
}

#[test]
fn it_is_the_same_each_time_and_lintian_has_nothing_to_say() -> testkit::Result {
    let (one, other) = (Scratch::new("tests")?, Scratch::new("tests")?);
    let (first, second) = (package(one.path())?, package(other.path())?);
    let bytes = |path: &Path| fs::read(path).or_fail("read the package");
    assert!(bytes(&first)? == bytes(&second)?, "the packages differ");
    // Root is who runs the tests; a package is data to it.
    let lintian = ["--allow-root", "--display-info", "--fail-on", "error,warning,info"];
    // Rust's texts lie side by side in the binary with nothing between: "of" and "the" are misspelled by chance.
    let lintian = lintian.into_iter().chain(["--suppress-tags", "spelling-error-in-binary"]);
    let told = run(Command::new("lintian").args(lintian).arg(&first))?;
    assert_eq!(told.trim(), "");
    Ok(())
}

/// Those of another architecture are made alike; its binary is data to the script.
#[test]
fn a_package_for_another_architecture_names_it() -> testkit::Result {
    let Some((other, binary)) = cross_compiled() else { return Ok(()) };
    let scratch = Scratch::new("tests")?;
    let mut script = Command::new(workspace().join("packaging/debian/build.sh"));
    run(script.arg(other).env("DEB_DIRECTORY", scratch.path()))?;
    let made = scratch.path().join(format!("sds-shim_{}_{other}.deb", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(Command::new("dpkg-deb").arg("--field").arg(&made).arg("Architecture"))?.trim(), other);
    let unpacked = scratch.path().join("root");
    run(Command::new("dpkg-deb").arg("-x").arg(&made).arg(&unpacked))?;
    assert!(fs::read(unpacked.join("usr/bin/sds-shim")).or_fail("read it")? == fs::read(binary).or_fail("read it")?);
    Ok(())
}

/// Without systemd as the first process, as in a container or while an image is made.
fn comes_and_goes(suite: &str) -> testkit::Result {
    if !crate::possible() {
        return Ok(());
    }
    let scratch = Scratch::new("tests")?;
    let package = package(scratch.path())?;
    let debian = Machine::start(suite, &[(scratch.path(), "/packages")], &["sleep", "infinity"])?;
    let file = format!("/packages/{}", package.file_name().unwrap_or_default().display());
    debian.sh(&format!("dpkg --install {file}; dpkg --verify sds-shim"))?;
    assert_eq!(debian.sh("stat -c '%a %U:%G' /usr/bin/sds-shim")?, "111 root:root");
    for path in [
        "/usr/lib/systemd/system/sds-shim.service",
        "/usr/lib/tmpfiles.d/sds-shim.conf",
        "/usr/share/bash-completion/completions/sds-shim",
        "/usr/share/zsh/vendor-completions/_sds-shim",
        "/usr/share/fish/vendor_completions.d/sds-shim.fish",
        "/usr/share/man/man1/sds-shim.1.gz",
        "/usr/share/doc/sds-shim/copyright",
    ] {
        debian.sh(&format!("test -s {path} && dpkg --search {path}"))?;
    }
    let unit = debian.sh("systemd-analyze verify --man=no sds-shim.service")?;
    assert!(!unit.contains("sds-shim"), "{unit}");
    let told =
        debian.sh("runuser -u istio-proxy -- sds-shim version; ! runuser -u istio-proxy -- cat /usr/bin/sds-shim")?;
    assert!(told.contains(concat!("sds-shim ", env!("CARGO_PKG_VERSION"))) && told.contains("denied"), "{told}");
    // Whoever installs it again keeps what they have configured.
    debian.sh(&format!("echo SERVICE_ACCOUNT=sleep >>/etc/sds-shim/environment; dpkg --install {file}"))?;
    debian.sh("grep -q SERVICE_ACCOUNT=sleep /etc/sds-shim/environment; touch /etc/sds-shim/istio-token")?;

    debian.sh("dpkg --remove sds-shim; test ! -e /usr/bin/sds-shim; test -e /etc/sds-shim/istio-token")?;
    debian.sh("dpkg --purge sds-shim; test ! -e /etc/sds-shim")?;
    let left = debian.sh("find / -xdev -name '*sds-shim*' ! -path '/proc/*' ! -path '/packages/*'")?;
    assert_eq!(left, "", "it leaves something behind");
    Ok(())
}

#[test]
fn it_comes_and_goes_in_debian_12() -> testkit::Result {
    comes_and_goes("bookworm")
}

#[test]
fn it_comes_and_goes_in_debian_13() -> testkit::Result {
    comes_and_goes("trixie")
}
