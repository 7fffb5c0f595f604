use std::collections::BTreeMap;

use super::{reader::Reader, variables};

/// Names that others have in this protocol, or in others.
const TAKEN: [&str; 3] = ["default", "ROOTCA", "*"];
/// How names begin that say what files they stand for.
const FILE: &str = "file-";

/// Names of the user's own, each with the name in full of the files that it stands for.
pub(super) fn read(reader: &mut Reader<'_>) -> BTreeMap<String, String> {
    reader.parse_with(&variables::SDS_SHIM_NAMES, parse).unwrap_or_default()
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, &'static str> {
    const EXPECTED: &str = "expected NAME=CHAIN~KEY for a certificate or NAME=FILE for trust anchors, or several, comma \
                            separated, each with a different name";
    let mut names = BTreeMap::new();
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (name, files) = one.split_once('=').ok_or(EXPECTED)?;
        let (name, files) = (name.trim(), files.trim());
        if TAKEN.contains(&name) || name.starts_with(FILE) {
            return Err("default, ROOTCA, * and names that begin with file- have a meaning of their own");
        }
        let files = match files.split('~').map(str::trim).collect::<Vec<_>>()[..] {
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
        let names = parse("shop = /c.pem~/k.pem, shop-cacert=/ca.pem,sds://web=w.pem~w.pem,").unwrap();
        let names: Vec<_> = names.iter().map(|(name, files)| (name.as_str(), files.as_str())).collect();
        assert_eq!(
            names,
            [
                ("sds://web", "file-cert:w.pem~w.pem"),
                ("shop", "file-cert:/c.pem~/k.pem"),
                ("shop-cacert", "file-root:/ca.pem")
            ]
        );
        for text in ["shop", "=/c~/k", "a=", "a=~", "a=/c~", "a=/c~/k~/x", "a=/c~/k,a=/d", "default=/c~/k", "file-x=/c"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
