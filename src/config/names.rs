use std::{collections::BTreeMap, path::PathBuf};

use super::{directory_of, file_resource::FileResource, reader::Reader, variables};

/// Names that others have in this protocol, or in others.
const TAKEN: [&str; 3] = ["default", "ROOTCA", "*"];
/// How names begin that say what files they stand for.
const FILE: &str = "file-";
const TOKEN: &str = "file-token:";

/// Names of the user's own, each with the files that it stands for.
pub(super) fn read(reader: &mut Reader<'_>, tokens: &[PathBuf]) -> BTreeMap<String, FileResource> {
    reader.parse_with(&variables::SDS_SHIM_NAMES, |text| parse(text, tokens)).unwrap_or_default()
}

fn parse(text: &str, tokens: &[PathBuf]) -> Result<BTreeMap<String, FileResource>, &'static str> {
    const EXPECTED: &str = "expected NAME=CHAIN~KEY for a certificate, NAME=FILE for trust anchors or \
                            NAME=file-token:FILE, or several, comma separated, each with a different name";
    let mut names = BTreeMap::new();
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (name, files) = one.split_once('=').ok_or(EXPECTED)?;
        let (name, files) = (name.trim(), files.trim());
        if TAKEN.contains(&name) || name.starts_with(FILE) {
            return Err("default, ROOTCA, * and names that begin with file- are reserved: choose another name");
        }
        let parts: Vec<_> = files.split('~').map(str::trim).collect();
        let full = match parts[..] {
            [file] if file.starts_with(TOKEN) => file.to_owned(),
            [file] => format!("file-root:{file}"),
            _ => format!("file-cert:{}", parts.join("~")),
        };
        let files = FileResource::parse(&full).ok_or(EXPECTED)?;
        if let FileResource::Token(path) = &files
            && !(path.is_absolute() && directory_of(tokens, path).is_some())
        {
            return Err("a token's path must be absolute and below one of SDS_SHIM_TOKEN_DIRECTORIES");
        }
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
        let names =
            "shop = /c.pem~/k.pem, shop-cacert=/ca.pem,sds://web=w.pem~w.pem,token=file-token:/run/t/x,os=system,";
        let names = parse(names, &["/run/t".into()]).unwrap();
        let expected = [
            ("os", "file-root:system"),
            ("sds://web", "file-cert:w.pem~w.pem"),
            ("shop", "file-cert:/c.pem~/k.pem"),
            ("shop-cacert", "file-root:/ca.pem"),
            ("token", "file-token:/run/t/x"),
        ];
        let full = expected.map(|(name, files)| (name.to_owned(), FileResource::parse(files).unwrap()));
        assert_eq!(names.into_iter().collect::<Vec<_>>(), full);
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
