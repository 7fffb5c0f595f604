use std::path::{Path, PathBuf};

use super::system_roots;

/// What stands between the parts of a name (Istio, `security/pkg/nodeagent/util`).
const SEPARATOR: char = '~';

/// The files that a resource name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileResource {
    /// `file-cert:CHAIN~KEY`. Both may be the same file (a credential bundle).
    Certificate {
        /// Certificate chain, leaf first, PEM.
        chain: PathBuf,
        /// Private key, PEM.
        key: PathBuf,
    },
    /// `file-root:PATH` and `file-root:system`.
    Roots(PathBuf),
    /// `file-token:PATH`.
    Token(PathBuf),
}

impl FileResource {
    /// The files behind a name; `None` when it is none of a file.
    pub fn parse(name: &str) -> Option<Self> {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        if let Some(files) = name.strip_prefix("file-cert:") {
            let (chain, key) = files.split_once(SEPARATOR)?;
            return (!key.contains(SEPARATOR)).then_some(Self::Certificate { chain: path(chain)?, key: path(key)? });
        }
        if let Some(file) = name.strip_prefix("file-token:") {
            return path(file).map(Self::Token);
        }
        match name.strip_prefix("file-root:")? {
            "system" => Some(Self::Roots(system_roots())),
            file => (!file.contains(SEPARATOR)).then_some(Self::Roots(path(file)?)),
        }
    }

    /// All of them.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Certificate { chain, key } => vec![chain, key],
            Self::Roots(file) | Self::Token(file) => vec![file],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_files() {
        let certificate = |chain: &str, key: &str| FileResource::Certificate { chain: chain.into(), key: key.into() };
        for (name, expected) in [
            ("file-cert:/a/c.pem~/a/k.pem", Some(certificate("/a/c.pem", "/a/k.pem"))),
            ("file-cert:b~b", Some(certificate("b", "b"))),
            ("file-root:/a/r.pem", Some(FileResource::Roots("/a/r.pem".into()))),
            ("file-root:./r.pem", Some(FileResource::Roots("./r.pem".into()))),
            ("file-cert:/a/c.pem", None),
            ("file-cert:a~b~c", None),
            ("file-cert:~k", None),
            ("file-cert:c~", None),
            ("file-root:a~b", None),
            ("file-root:", None),
            ("file-token:/var/run/token", Some(FileResource::Token("/var/run/token".into()))),
            ("file-token:", None),
            ("file-other:a", None),
            ("default", None),
            ("sds://default", None),
        ] {
            assert_eq!(FileResource::parse(name), expected, "{name}");
        }
    }
}
