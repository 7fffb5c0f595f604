use std::{
    fs::{self, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use nix::{fcntl::OFlag, sys::statfs::statfs};

/// What it means that a file is mounted by itself.
pub const MOUNTED_ALONE: &str = "it is mounted by itself, as with a volume's subPath, so kubelet never updates it: \
                                 mount the volume's directory instead";

/// File systems that tell of changes (inotify), by their numbers in statfs(2): tmpfs, ramfs, ext2 to ext4, xfs, btrfs,
/// f2fs, bcachefs, zfs, and overlayfs, where what is changed lies in its upper layer.
const TELLING: [u32; 9] =
    [0x0102_1994, 0x8584_58f6, 0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1, 0x794c_7630];
/// Names of some that do not: what changes at their other end is known there alone.
const SILENT: [(u32, &str); 9] = [
    (0x6573_5546, "FUSE or virtiofs"),
    (0x0102_1997, "9p"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x00c3_6400, "Ceph"),
    (0x9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x7372_7279, "a read-only image"),
];

/// The name of the file system that a place lies on, if it is none that is known to tell of changes.
pub fn silent_file_system(place: &Path) -> Option<String> {
    let number = statfs(place).ok()?.filesystem_type().0 as u32;
    if TELLING.contains(&number) {
        return None;
    }
    let known = SILENT.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_owned());
    Some(known.unwrap_or_else(|| format!("a file system with the number {number:#x}")))
}

/// Whether a file is mounted, and not the directory that it is in.
pub fn is_mounted_alone(file: &Path) -> bool {
    let Ok(real) = fs::canonicalize(file) else { return false };
    let Some(directory) = real.parent().filter(|_| real.is_file()) else { return false };
    matches!((mount(&real), mount(directory)), (Ok(own), Ok(other)) if own != other)
}

/// The number of the mount that something lies in.
fn mount(place: &Path) -> io::Result<u64> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(place)?;
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd()))?;
    let number = told.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_tell_of_no_changes_are_known() {
        assert_eq!(silent_file_system(Path::new("/proc/self/status")).as_deref(), Some("procfs"));
        assert_eq!(silent_file_system(Path::new("/dev/shm")), None);
        assert_eq!(silent_file_system(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_file_in_its_directorys_mount_is_not_a_mount_point() {
        for file in ["/proc/self/status", "/nonexistent", "/", "/proc"] {
            assert!(!is_mounted_alone(Path::new(file)), "{file}");
        }
    }
}
