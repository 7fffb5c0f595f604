//! Foreign bytes with a limit that is checked before memory is taken.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use nix::unistd::{getegid, geteuid};

/// What helps where something is closed to us.
const CLOSED: &str = "open it to us, in Kubernetes with fsGroup or the volume's defaultMode";

/// Reads a file that others write.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] when it holds more than `limit` bytes, else what the kernel says.
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // Reserved at once where the size is known, so that no buffer is outgrown.
    let size = file.metadata().map_or(0, |metadata| metadata.len() as usize);
    let mut content = Vec::with_capacity(size.min(limit) + 1);
    // One byte more than allowed is asked for: sizes of special files, and of files that grow, are not told before.
    file.take(limit as u64 + 1).read_to_end(&mut content)?;
    if content.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("the file holds more than {limit} bytes")));
    }
    Ok(content)
}

/// What is wrong with a file, and where it matters, whose it is and who we are.
pub fn describe(path: &Path, error: &io::Error) -> String {
    let file = path.display();
    match (error.kind(), fs::metadata(path)) {
        (io::ErrorKind::PermissionDenied, Ok(found)) => format!(
            "{file}: {error} (it has owner {}:{} and mode {:04o}; we are {}:{}): {CLOSED}",
            found.uid(),
            found.gid(),
            found.mode() & 0o7777,
            geteuid(),
            getegid()
        ),
        (io::ErrorKind::PermissionDenied, Err(_)) => {
            format!(
                "{file}: {error} (a directory on the way to it is closed to us; we are {}:{}): {CLOSED}",
                geteuid(),
                getegid()
            )
        }
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => {
            format!("{file}: {error} (make room there, or mount a larger volume)")
        }
        _ => format!("{file}: {error}"),
    }
}

/// A peer's text made fit for one line of the log: control characters and anything that could be key material
/// (PEM blocks, long runs of base64) replaced, cut to `limit` characters.
///
/// Envoy's error texts have carried an inline private key (envoyproxy/envoy#4757).
pub fn foreign_text(text: &str, limit: usize) -> String {
    const LONGEST_RUN: usize = 40;
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() && out.chars().count() < limit {
        let run = rest.find(|c| !base64(c)).unwrap_or(rest.len());
        // A PEM block may follow whatever is written before it without a gap, and dashes are base64 as well.
        let block = rest[..run].find("-----BEGIN");
        if run > LONGEST_RUN || block.is_some() {
            out.push_str("[redacted]");
            // Of a PEM block everything goes up to its end marker, or all that is left.
            let end = match block {
                Some(start) => rest[start..].find("-----END").map_or(rest.len(), |at| start + at + "-----END".len()),
                None => run,
            };
            rest = &rest[end..];
            continue;
        }
        let (word, tail) = rest.split_at(run);
        out.push_str(word);
        let mut characters = tail.chars();
        if let Some(separator) = characters.next() {
            out.push(if separator.is_control() { ' ' } else { separator });
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
    fn foreign_text_is_one_line_and_cut() {
        assert_eq!(foreign_text("a\nb\u{1b}[31mc", 256), "a b [31mc");
        assert_eq!(foreign_text(&"ä ".repeat(300), 5), "ä ä ä…");
        assert_eq!(foreign_text("", 5), "");
    }

    #[test]
    fn reads_up_to_the_limit() {
        assert_eq!(read(Path::new("/dev/zero"), 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(Path::new("/dev/null"), 10).unwrap(), b"");
        assert_eq!(read(Path::new("/nonexistent"), 10).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
