use std::time::Duration;

use super::{reader::Reader, variables};

/// How files that others write are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// How long to wait after a change for the next one, so that what belongs together is read together.
    pub debounce: Duration,
    /// When to look at files that are not known to have changed.
    pub check: FileCheck,
}

/// When files are looked at that are not known to have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileCheck {
    /// Never.
    Never,
    /// So often, where they lie on a file system that does not tell of changes.
    Silent(Duration),
    /// So often, wherever they lie.
    All(Duration),
}

impl FileCheck {
    /// The time between two looks, if there are any.
    pub fn pause(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Silent(pause) | Self::All(pause) => Some(pause),
        }
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> FilesConfig {
    let everywhere = reader.is_set(&variables::SDS_SHIM_FILE_CHECK);
    let check = match reader.duration(&variables::SDS_SHIM_FILE_CHECK).unwrap_or_default() {
        Duration::ZERO => FileCheck::Never,
        pause if everywhere => FileCheck::All(pause),
        pause => FileCheck::Silent(pause),
    };
    FilesConfig { debounce: reader.duration(&variables::FILE_DEBOUNCE_DURATION).unwrap_or_default(), check }
}
