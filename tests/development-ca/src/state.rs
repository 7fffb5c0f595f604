//! Keys, certificates and JWKS in a directory, for the command line.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::pki::Pki;
use crate::token::TokenIssuer;

/// Name of the JWKS file in the directory.
const JWKS: &str = "jwks.json";

/// Loads a PKI and a token issuer from `dir`; both are made when the directory is missing or empty.
pub fn open_or_create(dir: &Path) -> io::Result<(Pki, TokenIssuer)> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if fs::read_dir(dir)?.next().is_none() {
        save(dir, &Pki::new("development-ca"), &TokenIssuer::new())?;
    }
    Ok((Pki::from_files(|name| read(dir, name))?, open_tokens(dir)?))
}

/// Loads the token issuer that [`open_or_create`] left in `dir`.
pub fn open_tokens(dir: &Path) -> io::Result<TokenIssuer> {
    TokenIssuer::from_files(|name| read(dir, name))
}

fn save(dir: &Path, pki: &Pki, tokens: &TokenIssuer) -> io::Result<()> {
    let files = pki.to_files()?.into_iter().chain(tokens.to_files()?).chain([(JWKS, tokens.jwks())]);
    for (name, content) in files {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
        file.write_all(content.as_bytes())?;
    }
    Ok(())
}

fn read(dir: &Path, name: &str) -> io::Result<String> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
