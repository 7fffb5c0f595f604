use std::{fs, path::Path};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, Workload,
    development_ca::{Leaf, ProjectedVolume},
};

use crate::{
    agent::{Launch, Running},
    ground::Ground,
};

/// Directory of the mounted certificate in a pod, and the files that lead Envoy to it.
const CERTIFICATES: &str = "certs";
const CERTIFICATE_FILE: &str = "./default.json";
const ANCHORS_FILE: &str = "./rootca.json";

/// How Envoys get new certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the shim.
    Sds,
    /// Not at all; the first is the shim's.
    None,
    /// In files that Envoy watches.
    Files,
    /// In files that it reads when it starts, so that it is restarted.
    Restart,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Sds, Self::None, Self::Files, Self::Restart];

    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sds => "SDS",
            Self::None => "no rotation",
            Self::Files => "watched files",
            Self::Restart => "hot restart",
        }
    }

    /// Changes an Envoy's configuration for it.
    pub(super) fn apply(self, bootstrap: &mut Value) {
        if matches!(self, Self::Sds | Self::None) {
            return;
        }
        let resources = &mut bootstrap["static_resources"];
        if let Some(clusters) = resources["clusters"].as_array_mut() {
            clusters.retain(|cluster| cluster["name"] != "sds-grpc");
        }
        for part in ["clusters", "listeners"] {
            for one in resources[part].as_array_mut().into_iter().flatten() {
                let chain = if part == "listeners" { &mut one["filter_chains"][0] } else { one };
                if let Some(socket) = chain.get_mut("transport_socket") {
                    self.apply_to(&mut socket["typed_config"]["common_tls_context"]);
                }
            }
        }
    }

    fn apply_to(self, context: &mut Value) {
        let mut validation = context["combined_validation_context"]["default_validation_context"].take();
        let watched = |file: &str| json!({ "path_config_source": { "path": file }, "resource_api_version": "V3" });
        *context = if self == Self::Files {
            json!({
                "tls_certificate_sds_secret_configs": [{ "name": "default", "sds_config": watched(CERTIFICATE_FILE) }],
                "combined_validation_context": {
                    "default_validation_context": validation,
                    "validation_context_sds_secret_config": { "name": "ROOTCA", "sds_config": watched(ANCHORS_FILE) },
                },
            })
        } else {
            validation["trusted_ca"] = file("root-cert.pem");
            json!({ "tls_certificates": [certificate()], "validation_context": validation })
        };
    }
}

/// Where the certificates of one pod come from.
pub(super) enum Source {
    Shim(Running),
    Files(ProjectedVolume),
}

impl Source {
    /// Has the first certificate on its way.
    pub(super) fn start(way: Way, ground: &Ground, pod: &Workload) -> Result<Self, Failure> {
        if matches!(way, Way::Sds | Way::None) {
            return Ok(Self::Shim(Launch::ours_in(pod, ground)?.start()?));
        }
        let directory = pod.path().join(CERTIFICATES);
        let volume = ProjectedVolume::create(&directory, &[]).or_fail("mount certificates")?;
        let source = Self::Files(volume);
        source.rotate(ground, pod)?;
        write(pod.path(), CERTIFICATE_FILE, "default", &json!({ "tls_certificate": certificate() }))?;
        let anchors = json!({ "trusted_ca": file("root-cert.pem"), "watched_directory": directory_to_watch() });
        write(pod.path(), ANCHORS_FILE, "ROOTCA", &json!({ "validation_context": anchors }))?;
        Ok(source)
    }

    /// Brings the next certificate.
    pub(super) fn rotate(&self, ground: &Ground, pod: &Workload) -> Result<(), Failure> {
        match self {
            Self::Shim(running) => running.signal(Signal::SIGUSR1),
            Self::Files(volume) => {
                const LIFE: std::time::Duration = std::time::Duration::from_secs(3600);
                let issued = ground.pki.issue(&Leaf::workload(&pod.spiffe_id(), LIFE));
                let root = ground.ca.root_pem();
                let files = [
                    ("cert-chain.pem", issued.chain_pem.as_str()),
                    ("key.pem", &issued.key_pem),
                    ("root-cert.pem", &root),
                ];
                volume.replace(&files).or_fail("replace mounted certificates")
            }
        }
    }
}

fn file(name: &str) -> Value {
    json!({ "filename": format!("{CERTIFICATES}/{name}") })
}

fn certificate() -> Value {
    json!({
        "certificate_chain": file("cert-chain.pem"),
        "private_key": file("key.pem"),
        "watched_directory": directory_to_watch(),
    })
}

fn directory_to_watch() -> Value {
    json!({ "path": CERTIFICATES })
}

/// Writes a secret for Envoy's own file source.
fn write(pod: &Path, file: &str, name: &str, secret: &Value) -> Result<(), Failure> {
    let mut secret = secret.clone();
    secret["@type"] = json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    secret["name"] = json!(name);
    let response = json!({ "resources": [secret] });
    fs::write(pod.join(file), response.to_string()).or_fail(format!("write {file}"))
}
