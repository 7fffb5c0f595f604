//! A minimal Debian in a container of podman, with nothing but what it brings and a loopback device.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use testkit::{Failure, OrFail, PATIENCE, POLL, container::podman, workspace};
use tokio::time::{Instant, sleep};

/// Not podman's own default, which the machine may not allow; the last is what the shim's unit asks for.
const LIMITS: [&str; 6] =
    ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512", "--ulimit", "memlock=8388608:8388608"];

/// A machine of this kind; gone with its disk when this is dropped.
pub(crate) struct Machine {
    name: String,
}

impl Machine {
    /// Debian `suite`, running `command` as its first process, with `shown` at these places.
    pub(crate) fn start(suite: &str, shown: &[(&Path, &str)], command: &[&str]) -> Result<Self, Failure> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let machine = Self { name: format!("sds-shim-test-debian-{}-{number}", std::process::id()) };
        let disk = workspace().join(format!("target/debian/{suite}.tar")).display().to_string();
        podman(&["import", "--quiet", &disk, &machine.image()])?;
        // What systemd needs to lay out a unit's namespace. /proc/sys stays read-only: it is the host's as well.
        let fixed = [
            "run",
            "--detach",
            "--name",
            &machine.name,
            "--network",
            "none",
            "--log-driver",
            "none",
            "--systemd",
            "always",
            "--cap-add",
            "sys_admin",
            "--security-opt",
            "seccomp=unconfined",
            "--add-host",
            "istiod.istio-system.svc:127.0.0.1",
        ];
        let volumes: Vec<_> = shown
            .iter()
            .flat_map(|(path, inside)| ["--volume".to_owned(), format!("{}:{inside}:ro", path.display())])
            .collect();
        let volumes: Vec<_> = volumes.iter().map(String::as_str).collect();
        let image = machine.image();
        podman(&[&fixed[..], &LIMITS, &volumes, &[&image], command].concat())?;
        Ok(machine)
    }

    /// The same with systemd as its first process, once that has started all.
    pub(crate) async fn boot(suite: &str, shown: &[(&Path, &str)]) -> Result<Self, Failure> {
        let machine = Self::start(suite, shown, &["/sbin/init"])?;
        machine.booted().await?;
        Ok(machine)
    }

    pub(crate) async fn booted(&self) -> testkit::Result {
        // `is-system-running` answers before the bus is there, too.
        self.until("test \"$(systemctl is-system-running)\" = running").await.map(drop)
    }

    /// Switches it off in order, and on again with the same disk.
    pub(crate) async fn reboot(&self) -> testkit::Result {
        podman(&["stop", "--time", "30", &self.name])?;
        podman(&["start", &self.name])?;
        self.booted().await
    }

    fn image(&self) -> String {
        format!("localhost/{}", self.name)
    }

    /// Runs a script of the shell as root; what it wrote, or what is wrong.
    pub(crate) fn sh(&self, script: &str) -> Result<String, Failure> {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let script = format!("set -e; exec 2>&1; {script}");
        podman(&["exec", "--env", path, "--workdir", "/root", &self.name, "sh", "-c", &script])
    }

    /// Waits until a script ends with 0.
    pub(crate) async fn until(&self, script: &str) -> Result<String, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.sh(script) {
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(_) => sleep(POLL).await,
                told => return told,
            }
        }
    }

    /// Puts a file into it.
    pub(crate) fn copy(&self, file: &Path, to: &str) -> testkit::Result {
        podman(&["cp", &file.display().to_string(), &format!("{}:{to}", self.name)]).map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = podman(&["rm", "--force", "--time", "0", "--ignore", &self.name]);
        let _ = podman(&["rmi", "--ignore", &self.image()]);
    }
}

/// Runs a program of this machine; what it wrote, or what is wrong.
pub(crate) fn run(command: &mut Command) -> Result<String, Failure> {
    let ran = command.output().or_fail(format!("run {command:?}"))?;
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    if ran.status.success() { Ok(told) } else { Err(Failure::new(format!("{command:?}: {told}"))) }
}
