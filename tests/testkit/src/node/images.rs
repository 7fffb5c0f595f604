//! Images that podman built, for containerd.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Node, files::PAUSE};
use crate::{
    Failure, OrFail,
    container::{Images, ProgramImage, podman},
};

// How the images are called that a user's node would pull: Envoy is the tests' own, the others are stand-ins from this
// machine's programs, because the tests ask no registry.
const ENVOY: &str = "docker.io/envoyproxy/envoy:distroless-v1.40.0";
/// A server that answers, and the test kit's other programs.
pub const HTTPBIN: &str = "docker.io/mccutchen/go-httpbin:v2.15.0";
/// curl and what a shell takes.
pub const CURL: &str = "docker.io/curlimages/curl:8.11.1";

impl Node {
    /// Gives containerd the images of shim and development CA, Envoy, and stand-ins for what the chart's samples run.
    pub(super) async fn load_images(&self) -> crate::Result {
        let scratch = self.images_directory()?;
        let shim = Images::build(None)?;
        let ca = ProgramImage::development_ca(&scratch)?;
        let envoy = ProgramImage::envoy(&scratch)?;
        let server = ProgramImage::application(&scratch)?;
        let client = ProgramImage::client(&scratch)?;
        let version = env!("CARGO_PKG_VERSION");
        let names = [
            (shim.binary(), format!("localhost/sds-shim:{version}")),
            (ca.name().to_owned(), format!("localhost/sds-shim-development-ca:{version}")),
            (envoy.name().to_owned(), ENVOY.to_owned()),
            (server.name().to_owned(), HTTPBIN.to_owned()),
            (server.name().to_owned(), PAUSE.to_owned()),
            (client.name().to_owned(), CURL.to_owned()),
        ];
        self.take_images(&scratch, &names).await
    }

    /// Gives containerd the images of another version: one of the shim that differs, and the development CA's by that name.
    pub async fn load_version(&self, version: &str) -> crate::Result {
        let scratch = self.images_directory()?;
        let shim = Images::build(None)?;
        let ca = ProgramImage::development_ca(&scratch)?;
        let names = [
            (shim.binary(), format!("localhost/sds-shim:{version}")),
            (ca.name().to_owned(), format!("localhost/sds-shim-development-ca:{version}")),
        ];
        self.take_images(&scratch, &names).await
    }

    /// Gives containerd what a Prometheus of the operator's needs, by the names that `hub` and `tag` make.
    pub async fn load_prometheus(&self, hub: &str, tag: &str) -> crate::Result {
        let scratch = self.images_directory()?;
        let mut images = Vec::new();
        for name in ["operator", "prometheus-config-reloader", "prometheus"] {
            images.push((name, ProgramImage::prometheus(&scratch, name)?));
        }
        let names: Vec<_> =
            images.iter().map(|(name, image)| (image.name().to_owned(), format!("{hub}/{name}:{tag}"))).collect();
        self.take_images(&scratch, &names).await
    }

    /// Gives containerd what is needed for Istio's mesh, by the names that `hub` and `tag` make: its control plane, its
    /// proxy, and that with the shim before it, which gets the name `sidecar`.
    pub async fn load_istio(&self, hub: &str, tag: &str, sidecar: &str) -> crate::Result {
        let scratch = self.images_directory()?;
        let istiod = ProgramImage::istiod(&scratch)?;
        let proxy = ProgramImage::istio_proxy(&scratch)?;
        let shim = Images::build(Some(proxy.name()))?;
        let names = [
            (istiod.name().to_owned(), format!("{hub}/pilot:{tag}")),
            (proxy.name().to_owned(), format!("{hub}/proxyv2:{tag}")),
            (shim.sidecar(), sidecar.to_owned()),
        ];
        self.take_images(&scratch, &names).await
    }

    /// A directory to lay out images in, which [`take_images`](Self::take_images) removes.
    fn images_directory(&self) -> Result<PathBuf, Failure> {
        let directory = self.directory.join("images");
        fs::create_dir_all(&directory).or_fail("make a directory for images")?;
        Ok(directory)
    }

    /// Hands images of podman's to containerd, each by another name.
    async fn take_images(&self, scratch: &Path, names: &[(String, String)]) -> crate::Result {
        let archive = scratch.join("images.tar").display().to_string();
        let built: BTreeSet<_> = names.iter().map(|(built, _)| built.as_str()).collect();
        let built: Vec<_> = built.into_iter().collect();
        podman(&[&["save", "--quiet", "--multi-image-archive", "--output", &archive][..], &built].concat())?;
        self.ctr(&["images", "import", "--local", "--no-unpack", "/run/node/images/images.tar"]).await?;
        for (built, name) in names {
            // podman's archive leaves a tag out where there was none.
            let tagged = if built.rsplit('/').next().is_some_and(|last| last.contains(':')) { "" } else { ":latest" };
            self.ctr(&["images", "tag", &format!("{built}{tagged}"), name]).await?;
            self.ctr(&["images", "label", name, "io.cri-containerd.image=managed"]).await?;
        }
        fs::remove_dir_all(scratch).or_fail("remove the images' archive")
    }

    /// Runs containerd's client for the containers of kubelet, as [`exec`](Self::exec) does.
    pub async fn ctr(&self, arguments: &[&str]) -> Result<String, Failure> {
        let command = ["ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"];
        self.exec(&[&command[..], arguments].concat()).await
    }
}
