use std::path::PathBuf;

use super::{reader::Reader, variables};

/// `OUTPUT_CERTS`: where key, chain and trust anchors are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// The directory.
    pub directory: PathBuf,
    /// Mode of the key's file.
    pub mode: u32,
    /// Group of the files; our own if none is given.
    pub gid: Option<u32>,
}

pub(super) fn read(reader: &mut Reader<'_>, from_request: bool) -> Option<OutputConfig> {
    let mode = reader.parse_with(&variables::SDS_SHIM_OUTPUT_MODE, |text| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected an octal mode, such as 0640"),
    });
    let gid = reader.parse_with(&variables::SDS_SHIM_OUTPUT_GID, |text| {
        text.parse::<u32>().map_err(|_| "expected a numeric group ID, such as 1337")
    });
    let directory = reader.text(&variables::OUTPUT_CERTS)?.into();
    if from_request {
        reader
            .mistake(&variables::OUTPUT_CERTS, "with SDS_SHIM_TOKEN_SOURCE=request there is no certificate of our own");
    }
    Some(OutputConfig { directory, mode: mode.unwrap_or_default(), gid })
}
