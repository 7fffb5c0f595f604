//! Foreign bytes with a limit that is checked before memory is taken.

mod place;

use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::{
    fcntl::OFlag,
    unistd::{getegid, geteuid},
};

use crate::budget;

pub use place::{MOUNTED_ALONE, is_mounted_alone, silent_file_system};

/// What helps where something is closed to us.
const CLOSED: &str = "grant this user access, in Kubernetes with fsGroup or the volume's defaultMode";
/// What helps with a text of that form.
pub const UTF_16: &str = "it is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)";
/// Bytes that a file may have grown by since it was opened, or have where the file system tells no sizes.
const GROWTH: usize = 16 * 1024;

/// A regular file that others write, opened, with its size at that time. Whatever its name leads to later, no more
/// than there is room for is read of it.
pub struct Opened {
    file: File,
    size: usize,
    limit: usize,
}

/// Opens a file that others write. Nothing else than a regular file is opened: of a FIFO or a device that nobody
/// writes to, the one thread that we have would never return.
///
/// # Errors
/// What the name stands for, if it is no regular file; else what the kernel says.
pub fn open(path: &Path, limit: usize) -> io::Result<Opened> {
    // Looked at before as well: to open a device or a FIFO can do something.
    regular(fs::metadata(path)?.file_type())?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    regular(metadata.file_type())?;
    Ok(Opened { file, size: usize::try_from(metadata.len()).unwrap_or(usize::MAX), limit })
}

fn regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_block_device() => "a block device",
        _ => "something else",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

impl Opened {
    /// As many bytes as are read at the most.
    pub fn most(&self) -> usize {
        self.size.max(GROWTH).min(self.limit)
    }

    /// As many bytes as it had when it was opened.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Itself, if there is room for what will be read of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`]: a full arena would end the process.
    pub fn if_room(self, has_room: impl Fn(usize) -> bool) -> io::Result<Self> {
        if has_room(self.most()) { Ok(self) } else { Err(no_room()) }
    }

    /// Its content.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] when it holds more than the limit, else what the kernel says.
    pub fn read(self) -> io::Result<Vec<u8>> {
        let most = self.most();
        let mut content = Vec::new();
        // Reserved at once where the size is known, so that no buffer is outgrown.
        content.try_reserve_exact(self.size.min(most) + 1).map_err(|_| no_room())?;
        let (size, limit) = (self.size, self.limit);
        self.into_reader().read_to_end(&mut content)?;
        if size > limit || content.len() > limit {
            return Err(too_large(limit));
        }
        if content.len() > most {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it grew while it was being read"));
        }
        Ok(content)
    }

    /// Its content, which is text.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it is not UTF-8, else as for [`Opened::read`].
    pub fn text(self) -> io::Result<String> {
        text(self.read()?)
    }

    /// Itself, if it holds no more than the limit.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] when it does.
    pub fn within_limit(self) -> io::Result<Self> {
        if self.size > self.limit { Err(too_large(self.limit)) } else { Ok(self) }
    }

    /// Its bytes for whoever reads them in portions, up to one more than [`Opened::most`], to see whether it has grown.
    pub fn into_reader(self) -> impl Read {
        let most = self.most() as u64;
        Portions { rest: self.file.take(most + 1), size: self.size, read: 0, is_whole: false }
    }
}

/// A file that is read in portions. Where it has given all that it said to have, and less than was asked for, nobody
/// asks once more for nothing.
struct Portions {
    rest: io::Take<File>,
    size: usize,
    read: usize,
    is_whole: bool,
}

impl Read for Portions {
    fn read(&mut self, portion: &mut [u8]) -> io::Result<usize> {
        if self.is_whole {
            return Ok(0);
        }
        let count = self.rest.read(portion)?;
        self.read += count;
        self.is_whole = self.read == self.size && count < portion.len();
        Ok(count)
    }
}

/// A file's content as text.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not UTF-8.
pub fn text(content: Vec<u8>) -> io::Result<String> {
    String::from_utf8(content).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        let form = match error.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => format!(": {UTF_16}"),
            [0x30, 0x80..=0x84, ..] => ": it looks like DER; convert it to PEM (openssl x509 -inform DER)".to_owned(),
            _ => String::new(),
        };
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not text: invalid UTF-8 at byte {at}{form}"))
    })
}

/// What is wrong with a file of more bytes than this.
pub fn too_large(limit: usize) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("the file holds more than {limit} bytes"))
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "not enough arena memory for it now; raise SDS_SHIM_ARENA_KIB")
}

/// Reads a file that others write.
///
/// # Errors
/// As for [`open`], [`Opened::if_room`] and [`Opened::read`].
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    open(path, limit)?.if_room(|size| budget::has_room_for_file(size, 1))?.read()
}

/// Reads a file that others write, of which only the ASCII counts; in the place of every other byte stands a `?`.
///
/// # Errors
/// As for [`read`].
pub fn read_ascii(path: &Path, limit: usize) -> io::Result<String> {
    let mut content = read(path, limit)?;
    content.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    String::from_utf8(content).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Two files that belong together, or the one that they both are.
pub fn both(one: &Path, other: &Path) -> String {
    if one == other { one.display().to_string() } else { format!("{} and {}", one.display(), other.display()) }
}

/// What is wrong with a file, and where it matters, whose it is and who we are.
pub fn describe(path: &Path, error: &io::Error) -> String {
    let file = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let whose = match fs::metadata(path) {
                Ok(found) => {
                    format!("owner {}:{}, mode {:04o}", found.uid(), found.gid(), found.mode() & 0o7777)
                }
                Err(_) => "a directory on its path is not accessible".to_owned(),
            };
            format!("{file}: {error} ({whose}; running as {}:{}): {CLOSED}", geteuid(), getegid())
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("{file}: {error} (free some space, or mount a larger volume)")
        }
        _ => format!("{file}: {error}"),
    }
}

/// A peer's text made fit for one line of the log: control characters and anything that could be key material
/// (PEM blocks, long runs of base64) replaced, cut to `limit` characters.
///
/// Envoy's error texts have carried an inline private key (envoyproxy/envoy#4757). In a URL each step of the path is
/// looked at by itself: issuers of tokens and SPIFFE IDs are no keys.
pub fn foreign_text(text: &str, limit: usize) -> String {
    const LONGEST_RUN: usize = 40;
    /// A label of Kubernetes: no capital letters, of which each key in base64 has some.
    const LONGEST_LABEL: usize = 63;
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let mut out = String::new();
    let mut rest = text;
    let mut url = false;
    while !rest.is_empty() && out.chars().count() < limit {
        let run = rest.find(|c| !base64(c) || (url && c == '/')).unwrap_or(rest.len());
        // A PEM block may follow whatever is written before it without a gap, and dashes are base64 as well.
        let block = rest[..run].find("-----BEGIN");
        let is_label = url && run <= LONGEST_LABEL && !rest[..run].contains(|c: char| c.is_ascii_uppercase());
        if (run > LONGEST_RUN && !is_label) || block.is_some() {
            out.push_str("[redacted]");
            // Of a PEM block everything goes up to its end marker, or all that is left.
            let end = match block {
                Some(start) => rest[start..].find("-----END").map_or(rest.len(), |at| start + at + "-----END".len()),
                None => run,
            };
            rest = &rest[end..];
            // It was no URL, or one that carries a key: the key's own slashes divide it no longer.
            url = false;
            continue;
        }
        let (word, tail) = rest.split_at(run);
        out.push_str(word);
        let mut characters = tail.chars();
        if let Some(separator) = characters.next() {
            out.push(if separator.is_control() { ' ' } else { separator });
            let scheme = word.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
            let begins = separator == ':' && characters.as_str().starts_with("//") && !scheme.is_empty();
            url = begins
                || (url
                    && !separator.is_whitespace()
                    && !separator.is_control()
                    && !"\"'<>,;(){}[]".contains(separator));
        }
        rest = characters.as_str();
    }
    let end = out.char_indices().nth(limit).map_or(out.len(), |(at, _)| at);
    if end < out.len() || !rest.is_empty() {
        out.truncate(end);
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use testkit::scratch::Scratch;

    use super::*;

    #[test]
    fn key_material_is_taken_out_of_foreign_text() {
        let pem = "bad key -----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY----- here";
        let told = foreign_text(pem, 256);
        assert!(told.starts_with("bad key [redacted]") && !told.contains("MIGH"), "{told}");
        let run = format!("inline {} end", "A1b/".repeat(30));
        assert_eq!(foreign_text(&run, 256), "inline [redacted] end");
        assert_eq!(foreign_text("-----BEGIN EC PRIVATE KEY----- abc", 256), "[redacted]");
        let glued = "key=-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY----- here";
        assert_eq!(foreign_text(glued, 256), "[redacted] PRIVATE KEY----- here");
    }

    #[test]
    fn urls_and_spiffe_ids_are_not_redacted() {
        let guid = "72f988bf-86f1-41af-91ab-2d7cd011db47";
        for text in [
            "from https://container.googleapis.com/v1/projects/a-project-of-ours/locations/europe-west1/clusters/production, and".to_owned(),
            format!("https://eastus.oic.prod-aks.azure.com/{guid}/{guid}/"),
            format!("\"spiffe://cluster.local/ns/{}/sa/{}\"", "n".repeat(63), "a-long-name-of-a-service-account-that-says-it-all"),
            "https://oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF".to_owned(),
        ] {
            assert_eq!(foreign_text(&text, 256), text);
        }
        let key = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
        for (text, expected) in [
            (format!("https://host/path?key={key}"), "https://host/path?[redacted]"),
            (format!("https://host/{key}/more"), "https://host/[redacted]/more"),
            (format!("see https://host {}/x", "A1b".repeat(15)), "see https://host [redacted]"),
            (format!("://{key}/{key}"), ":[redacted]"),
            (format!("https://host/{}", "0f".repeat(32)), "https://host/[redacted]"),
            (format!("https://host/{key}/{}/{}", &key[..30], &key[..30]), "https://host/[redacted][redacted]"),
        ] {
            assert_eq!(foreign_text(&text, 256), expected, "{text}");
        }
        let pem = "https://a/-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY----- here";
        assert!(!foreign_text(pem, 256).contains("MIGH"));
    }

    #[test]
    fn foreign_text_is_one_line_and_cut() {
        assert_eq!(foreign_text("a\nb\u{1b}[31mc", 256), "a b [31mc");
        assert_eq!(foreign_text(&"ä ".repeat(300), 5), "ä ä ä…");
        assert_eq!(foreign_text("", 5), "");
    }

    fn place() -> Scratch {
        Scratch::new("tests").unwrap()
    }

    /// A file in it, with this content.
    fn file(place: &Scratch, content: &[u8]) -> PathBuf {
        let path = place.path().join("file");
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn reads_up_to_the_limit() {
        let place = place();
        assert_eq!(read(&file(&place, b"0123456789"), 10).unwrap(), b"0123456789");
        assert_eq!(read(&file(&place, b"0123456789A"), 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&file(&place, &[b'x'; 99_999]), 99_999).unwrap().len(), 99_999);
        assert_eq!(read(Path::new("/nonexistent"), 10).unwrap_err().kind(), io::ErrorKind::NotFound);
        // Its size is told as zero.
        assert!(!read(Path::new("/proc/self/status"), 65_536).unwrap().is_empty());
    }

    #[test]
    fn an_open_file_is_read_even_if_its_name_is_reused() {
        let place = place();
        let path = file(&place, b"first");
        let opened = open(&path, 1 << 20).unwrap();
        fs::write(place.path().join("other"), vec![0xff; 400_000]).unwrap();
        fs::rename(place.path().join("other"), &path).unwrap();
        assert_eq!(opened.text().unwrap(), "first");
        assert_eq!(
            open(&path, 1 << 20).unwrap().text().unwrap_err().to_string(),
            "it is not text: invalid UTF-8 at byte 1"
        );
        let opened = open(&file(&place, b"short"), 1 << 20).unwrap();
        file(&place, &[b'x'; 100_000]);
        assert_eq!(opened.text().unwrap_err().to_string(), "it grew while it was being read");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let place = place();
        let fifo = place.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = place.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let rows = [
            (fifo.as_path(), "it is a FIFO, not a regular file"),
            (&socket, "it is a socket, not a regular file"),
            (place.path(), "it is a directory, not a regular file"),
            (Path::new("/dev/zero"), "it is a character device, not a regular file"),
        ];
        for (path, told) in rows {
            assert_eq!(read(path, 10).unwrap_err().to_string(), told);
            assert_eq!(describe(path, &read(path, 10).unwrap_err()), format!("{}: {told}", path.display()));
        }
    }

    #[test]
    fn non_ascii_bytes_are_replaced_one_by_one() {
        let place = place();
        assert_eq!(read_ascii(&file(&place, "a\u{e4}\n".as_bytes()), 10).unwrap(), "a??\n");
        assert_eq!(read_ascii(&file(&place, b"\xffnameserver"), 100).unwrap(), "?nameserver");
    }
}
