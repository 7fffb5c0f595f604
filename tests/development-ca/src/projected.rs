//! A projected volume as kubelet writes it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A directory whose files are links through `..data` into a dated directory, so that one rename replaces them all.
///
/// ```text
/// DIR/..2026_11_23_22_44_01.271828182/istio-token
/// DIR/..data -> ..2026_11_23_22_44_01.271828182
/// DIR/istio-token -> ..data/istio-token
/// ```
#[derive(Clone, Debug)]
pub struct ProjectedVolume {
    dir: PathBuf,
}

/// One of its files, and who may read it.
#[derive(Clone)]
pub struct ProjectedFile {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub content: String,
    /// Its permissions.
    pub mode: u32,
    /// Its owner, when that is not us.
    pub uid: Option<u32>,
    /// Its group, when that is not ours.
    pub gid: Option<u32>,
}

impl ProjectedVolume {
    /// Makes the directory if need be and writes the files (name, content); an existing volume gets new content.
    pub fn create(dir: &Path, files: &[(&str, &str)]) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let volume = ProjectedVolume { dir: dir.to_owned() };
        volume.replace(files)?;
        Ok(volume)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a new dated directory, swaps `..data` to it by a rename, then removes the old one and stale links.
    pub fn replace(&self, files: &[(&str, &str)]) -> io::Result<()> {
        let ours = |&(name, content): &(&str, &str)| ProjectedFile {
            name: name.to_owned(),
            content: content.to_owned(),
            mode: 0o600,
            uid: None,
            gid: None,
        };
        self.replace_files(&files.iter().map(ours).collect::<Vec<_>>())
    }

    /// The same, with an owner and permissions for each file.
    pub fn replace_files(&self, files: &[ProjectedFile]) -> io::Result<()> {
        if let Some(ProjectedFile { name, .. }) = files.iter().find(|file| !is_file_name(&file.name)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not a file name: {name:?}")));
        }
        let dated = self.write_dated(files)?;
        let data = self.dir.join("..data");
        let old = fs::read_link(&data).ok();
        let temporary = self.dir.join("..data_tmp");
        // Left behind by a writer that was stopped between the two calls below.
        ignore_missing(fs::remove_file(&temporary))?;
        symlink(&dated, &temporary)?;
        fs::rename(&temporary, &data)?;
        self.link(files)?;
        match old {
            Some(old) => ignore_missing(fs::remove_dir_all(self.dir.join(old))),
            None => Ok(()),
        }
    }

    fn write_dated(&self, files: &[ProjectedFile]) -> io::Result<String> {
        let dated = dated_name(SystemTime::now());
        let dir = self.dir.join(&dated);
        fs::create_dir(&dir)?;
        for ProjectedFile { name, content, mode, uid, gid } in files {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
            file.write_all(content.as_bytes())?;
            fchown(&file, *uid, *gid)?;
            file.set_permissions(fs::Permissions::from_mode(*mode))?;
        }
        Ok(dated)
    }

    fn link(&self, files: &[ProjectedFile]) -> io::Result<()> {
        let wanted: BTreeSet<OsString> = files.iter().map(|file| OsString::from(&file.name)).collect();
        for name in &wanted {
            let link = self.dir.join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(name), link)?;
            }
        }
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let is_link_into_data = fs::read_link(entry.path()).is_ok_and(|target| target.starts_with("..data"));
            if is_link_into_data && !wanted.contains(&entry.file_name()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with("..") && name != "."
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// `..YYYY_MM_DD_HH_MM_SS.NANOSECONDS`, UTC; kubelet ends it in a random number instead.
fn dated_name(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("..{year:04}_{month:02}_{day:02}_{hour:02}_{minute:02}_{second:02}.{:09}", since.subsec_nanos())
}

/// Calendar date of a day counted from 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_calendar_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_088, (2024, 12, 31)),
            (20_780, (2026, 11, 23)),
        ] {
            assert_eq!(date(days), expected);
        }
    }
}
