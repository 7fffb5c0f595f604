use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{Failure, OrFail, http, unix};

/// The admin interface of one Envoy.
#[derive(Clone)]
pub struct Admin {
    socket: PathBuf,
}

/// A workload certificate that Envoy uses, from `/certs`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Certificate {
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// URI names.
    pub uris: Vec<String>,
    /// End of its validity, as Envoy prints it.
    pub expiration: String,
}

/// Names of the secrets that Envoy holds and of those that it waits for, from `/config_dump`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretStates {
    /// Secrets in use.
    pub active: BTreeSet<String>,
    /// Secrets that have been asked for and not arrived.
    pub warming: BTreeSet<String>,
}

impl Admin {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// That of an Envoy that somebody else has started, with its admin interface at this socket.
    pub fn at(socket: &Path) -> Self {
        Self::new(socket.to_owned())
    }

    /// The Unix socket, for curl.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`; another status than 200 is a failure.
    pub async fn get(&self, path: &str) -> Result<String, Failure> {
        let answer = self.request(path).await?;
        match answer.status {
            200 => Ok(answer.text()),
            status => Err(Failure::new(format!("Envoy's admin answered {status} to {path}: {}", answer.text()))),
        }
    }

    /// `GET path` as JSON.
    pub async fn json(&self, path: &str) -> Result<Value, Failure> {
        serde_json::from_str(&self.get(path).await?).or_fail(format!("read the answer to {path} as JSON"))
    }

    /// Whether `/ready` says so; an admin interface that is not there yet is not ready.
    pub async fn is_ready(&self) -> bool {
        self.request("/ready").await.is_ok_and(|answer| answer.status == 200)
    }

    /// `/server_info`.
    pub async fn server_info(&self) -> Result<Value, Failure> {
        self.json("/server_info").await
    }

    /// How long this process has been up, in whole seconds.
    pub async fn uptime(&self) -> Result<Duration, Failure> {
        let info = self.server_info().await?;
        let text = info["uptime_all_epochs"].as_str().and_then(|text| text.strip_suffix('s'));
        let seconds = text.and_then(|text| text.parse().ok());
        seconds.map(Duration::from_secs).ok_or_else(|| Failure::new("server_info has no uptime_all_epochs"))
    }

    /// The workload certificates in use. While a rotation spreads through Envoy's contexts there can be two.
    pub async fn certificates(&self) -> Result<BTreeSet<Certificate>, Failure> {
        let page = self.json("/certs").await?;
        let contexts = page["certificates"].as_array();
        let leaves = contexts.into_iter().flatten().filter_map(|context| context["cert_chain"].get(0));
        Ok(leaves.map(Certificate::read).collect())
    }

    /// Serial numbers, likewise, of the trust anchors in use.
    pub async fn anchors(&self) -> Result<BTreeSet<String>, Failure> {
        let page = self.json("/certs").await?;
        let contexts = page["certificates"].as_array().into_iter().flatten();
        let anchors = contexts.flat_map(|context| context["ca_cert"].as_array()).flatten();
        Ok(anchors.map(|anchor| Certificate::read(anchor).serial).collect())
    }

    /// A counter or gauge; one that Envoy has not made yet is 0.
    pub async fn stat(&self, name: &str) -> Result<u64, Failure> {
        Ok(self.stats(name).await?.into_iter().find(|(known, _)| known == name).map_or(0, |(_, value)| value))
    }

    /// All counters and gauges whose name contains `part`.
    pub async fn stats(&self, part: &str) -> Result<Vec<(String, u64)>, Failure> {
        let page = self.get("/stats").await?;
        let lines = page.lines().filter_map(|line| line.split_once(": "));
        let matching = lines.filter(|(name, _)| name.contains(part));
        Ok(matching.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// Which secrets have arrived and which are still waited for.
    pub async fn secrets(&self) -> Result<SecretStates, Failure> {
        let dump = self.json("/config_dump").await?;
        let mut states = SecretStates::default();
        for config in dump["configs"].as_array().into_iter().flatten() {
            states.active.extend(names(&config["dynamic_active_secrets"]));
            states.warming.extend(names(&config["dynamic_warming_secrets"]));
        }
        Ok(states)
    }

    async fn request(&self, path: &str) -> Result<http::Answer, Failure> {
        let stream = unix::connect(&self.socket).await.or_fail("connect to Envoy's admin socket")?;
        http::get(stream, "envoy", path).await
    }
}

impl Certificate {
    fn read(entry: &Value) -> Self {
        let names = entry["subject_alt_names"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            serial: text(&entry["serial_number"]).trim_start_matches('0').to_owned(),
            uris: names.filter_map(|name| name["uri"].as_str().map(str::to_owned)).collect(),
            expiration: text(&entry["expiration_time"]),
        }
    }
}

fn names(secrets: &Value) -> impl Iterator<Item = String> + '_ {
    let secrets = secrets.as_array().into_iter().flatten();
    secrets.filter_map(|secret| secret["name"].as_str().map(str::to_owned))
}
