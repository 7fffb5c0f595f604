//! Memory pressure on a few processes alone: a swap file, and a control group from which the kernel takes memory.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::{Failure, OrFail, POLL};

/// A file to which the kernel may swap, as long as this is held.
pub struct SwapFile(PathBuf);

impl SwapFile {
    /// Makes a file of this size in `directory` and turns it on. Needs root with the capability SYS_ADMIN.
    pub fn on(directory: &Path, bytes: usize) -> Result<Self, Failure> {
        let path = directory.join("swap");
        let mut file = File::create(&path).or_fail("create the swap file")?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).or_fail("close the swap file to others")?;
        // Swap files must not have holes.
        file.write_all(&vec![0; bytes]).and_then(|()| file.sync_all()).or_fail("fill the swap file")?;
        run("/sbin/mkswap", &path)?;
        run("/sbin/swapon", &path)?;
        Ok(Self(path))
    }

    /// What was ever swapped out, as it is on the disk: the kernel writes past the file's cached pages.
    pub fn content(&self) -> Result<Vec<u8>, Failure> {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", self.0.display())).args(["iflag=direct", "bs=1M", "status=none"]);
        let output = dd.output().or_fail("run dd")?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(Failure::new(format!("dd failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        if let Err(failure) = run("/sbin/swapoff", &self.0) {
            eprintln!("{failure}");
        }
    }
}

fn run(program: &str, path: &Path) -> crate::Result {
    let output = Command::new(program).arg(path).output().or_fail(format!("run {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// A control group of the memory controller, of version 1 or 2, without processes yet.
pub struct Cgroup {
    directory: PathBuf,
    /// What to write to which file so that the kernel takes away all memory that it can.
    reclaim: (&'static str, &'static str),
}

impl Cgroup {
    /// Makes one at the top of the hierarchy. Needs root.
    pub fn new(name: &str) -> Result<Self, Failure> {
        let mounts = fs::read_to_string("/proc/self/mounts").or_fail("read the mounts")?;
        for mount in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
            let [_, top, kind, options, ..] = mount[..] else { continue };
            let top = Path::new(top);
            let reclaim = match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => ("memory.force_empty", "0"),
                "cgroup2" if has_memory(top) => {
                    fs::write(top.join("cgroup.subtree_control"), "+memory").or_fail("use the memory controller")?;
                    ("memory.reclaim", "1G")
                }
                _ => continue,
            };
            let directory = top.join(format!("{name}-{}", std::process::id()));
            fs::create_dir(&directory).or_fail(format!("create the control group {}", directory.display()))?;
            return Ok(Self { directory, reclaim });
        }
        Err(Failure::new("no control group hierarchy here has the memory controller"))
    }

    /// The file by which a process enters.
    pub fn entrance(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Has the kernel take away, once, all memory that it can: to swap what is in no file.
    pub fn squeeze(&self) -> crate::Result {
        let (file, amount) = self.reclaim;
        match fs::write(self.directory.join(file), amount) {
            // It could not have all, which is the point.
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy) => {
                Err(error).or_fail(format!("write {file} of the control group"))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last processes have been killed, and are about to be gone.
        for _ in 0..200 {
            match fs::remove_dir(&self.directory) {
                Ok(()) => return,
                Err(_) => thread::sleep(POLL),
            }
        }
        eprintln!("the control group {} could not be removed", self.directory.display());
    }
}

fn has_memory(top: &Path) -> bool {
    fs::read_to_string(top.join("cgroup.controllers"))
        .is_ok_and(|controllers| controllers.split_whitespace().any(|controller| controller == "memory"))
}
