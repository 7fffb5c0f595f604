use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::{reader::Reader, variables};

/// Names that others have in this protocol, or in others.
const TAKEN: [&str; 3] = ["default", "ROOTCA", "*"];
/// How names begin that say what files they stand for.
const FILE: &str = "file-";
const TOKEN: &str = "file-token:";

/// Names of the user's own, each with the name in full of the files that it stands for.
pub(super) fn read(reader: &mut Reader<'_>, tokens: &[PathBuf]) -> BTreeMap<String, String> {
    reader.parse_with(&variables::SDS_SHIM_NAMES, |text| parse(text, tokens)).unwrap_or_default()
}

fn parse(text: &str, tokens: &[PathBuf]) -> Result<BTreeMap<String, String>, &'static str> {
    const EXPECTED: &str = "expected NAME=CHAIN~KEY for a certificate, NAME=FILE for trust anchors or \
                            NAME=file-token:FILE, or several, comma separated, each with a different name";
    let mut names = BTreeMap::new();
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (name, files) = one.split_once('=').ok_or(EXPECTED)?;
        let (name, files) = (name.trim(), files.trim());
        if TAKEN.contains(&name) || name.starts_with(FILE) {
            return Err("default, ROOTCA, * and names that begin with file- have a meaning of their own");
        }
        let climbs = |file: &str| Path::new(file).components().any(|part| part == Component::ParentDir);
        let is_below = |file: &str| tokens.iter().any(|place| Path::new(file).starts_with(place)) && !climbs(file);
        let files = match files.split('~').map(str::trim).collect::<Vec<_>>()[..] {
            [file] if file.starts_with(TOKEN) => match is_below(&file[TOKEN.len()..]) {
                true => file.to_owned(),
                false => return Err("a token lies in none of the directories of SDS_SHIM_TOKEN_DIRECTORIES"),
            },
            [file] if !file.is_empty() => format!("file-root:{file}"),
            [chain, key] if !chain.is_empty() && !key.is_empty() => format!("file-cert:{chain}~{key}"),
            _ => return Err(EXPECTED),
        };
        if name.is_empty() || names.insert(name.to_owned(), files).is_some() {
            return Err(EXPECTED);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files_in_full() {
        let names = "shop = /c.pem~/k.pem, shop-cacert=/ca.pem,sds://web=w.pem~w.pem,token=file-token:/run/t/x,";
        let names = parse(names, &["/run/t".into()]).unwrap();
        let names: Vec<_> = names.iter().map(|(name, files)| (name.as_str(), files.as_str())).collect();
        assert_eq!(
            names,
            [
                ("sds://web", "file-cert:w.pem~w.pem"),
                ("shop", "file-cert:/c.pem~/k.pem"),
                ("shop-cacert", "file-root:/ca.pem"),
                ("token", "file-token:/run/t/x")
            ]
        );
        for text in [
            "shop",
            "=/c~/k",
            "a=",
            "a=~",
            "a=/c~",
            "a=/c~/k~/x",
            "a=/c~/k,a=/d",
            "default=/c~/k",
            "file-x=/c",
            "t=file-token:/x",
        ] {
            assert!(parse(text, &[]).is_err(), "{text:?}");
        }
        assert!(parse("t=file-token:/run/t/../x", &["/run/t".into()]).is_err());
    }
}
