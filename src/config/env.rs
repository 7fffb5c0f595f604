use std::{collections::BTreeMap, ffi::OsString, path::Path};

/// Where variables come from: the process in production, a map in tests.
pub trait Env {
    /// The value of `name`; `None` when it is unset. Bytes that are not UTF-8 are replaced, so that the parser of
    /// the variable can name it in its complaint.
    fn value(&self, name: &str) -> Option<String>;

    /// All names, for the search for misspelt ones.
    fn names(&self) -> Vec<String>;

    /// Whether a file is there: what is mounted for us says what is wanted as well.
    fn is_there(&self, file: &Path) -> bool {
        file.exists()
    }
}

/// The environment of this process, read once.
pub struct ProcessEnv(BTreeMap<String, String>);

impl ProcessEnv {
    /// Takes a copy of the environment as it is now.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    pub fn capture() -> Self {
        let lossy = |text: OsString| text.to_string_lossy().into_owned();
        Self(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect())
    }
}

impl Env for ProcessEnv {
    fn value(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

impl Env for BTreeMap<&str, &str> {
    fn value(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| (*value).to_owned())
    }

    fn names(&self) -> Vec<String> {
        self.keys().map(|name| (*name).to_owned()).collect()
    }
}

/// The command line of this process without its own name.
#[expect(clippy::disallowed_methods, reason = "the one place that reads them")]
pub fn arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// Whether Kubernetes has set a variable for a Service, such as one that is named sds-shim, and nobody means us.
pub(super) fn is_service_link(env: &dyn Env, name: &str) -> bool {
    env.names().iter().filter_map(|other| other.strip_suffix("_SERVICE_HOST")).any(|service| {
        name.strip_prefix(service).is_some_and(|rest| {
            ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].contains(&rest)
                || rest.starts_with("_SERVICE_PORT_")
                || rest.starts_with("_PORT_")
        })
    })
}
