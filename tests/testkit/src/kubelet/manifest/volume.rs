//! Volumes.

use serde::Deserialize;

use super::FieldRef;

/// A name and one source.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Volume {
    pub(in super::super) name: String,
    pub(in super::super) empty_dir: Option<EmptyDir>,
    pub(in super::super) projected: Option<Projected>,
    pub(in super::super) config_map: Option<ConfigMap>,
    pub(in super::super) secret: Option<Secret>,
    #[serde(rename = "downwardAPI")]
    pub(in super::super) downward_api: Option<DownwardApi>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Secret {
    pub(in super::super) secret_name: String,
    pub(in super::super) default_mode: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct EmptyDir {
    pub(in super::super) medium: Option<Medium>,
    pub(in super::super) size_limit: Option<String>,
}

#[derive(Deserialize)]
pub(in super::super) enum Medium {
    #[serde(rename = "")]
    Disk,
    Memory,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Projected {
    pub(in super::super) sources: Vec<Source>,
    pub(in super::super) default_mode: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) enum Source {
    ServiceAccountToken(TokenSource),
    ConfigMap(ConfigMap),
    #[serde(rename = "downwardAPI")]
    DownwardApi(DownwardApi),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct TokenSource {
    pub(in super::super) audience: Option<String>,
    pub(in super::super) expiration_seconds: Option<u64>,
    pub(in super::super) path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct ConfigMap {
    pub(in super::super) name: String,
    #[serde(default)]
    pub(in super::super) items: Vec<Item>,
    #[serde(default)]
    pub(in super::super) optional: bool,
    pub(in super::super) default_mode: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Item {
    pub(in super::super) key: String,
    pub(in super::super) path: String,
    pub(in super::super) mode: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct DownwardApi {
    #[serde(default)]
    pub(in super::super) items: Vec<DownwardItem>,
    pub(in super::super) default_mode: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct DownwardItem {
    pub(in super::super) path: String,
    pub(in super::super) field_ref: FieldRef,
}
