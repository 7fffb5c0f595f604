//! Images of the programs that pods run beside the shim. No registry is asked.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use super::{SHIM, output, podman, unique};
use crate::{Failure, OrFail, confined::helper, pilot_agent, process::binary, workspace};

/// An image with one program and the libraries that it loads; removed when this is dropped.
pub struct ProgramImage(String);

impl ProgramImage {
    /// An image that stands for Istio's proxy: the Envoy that tests use in the place of its agent.
    pub fn proxy(scratch: &Path) -> Result<Self, Failure> {
        Self::build(&scratch.join("proxy-image"), &envoy()?, &["usr/local/bin/pilot-agent"])
    }

    /// An image of the Envoy that tests use.
    pub fn envoy(scratch: &Path) -> Result<Self, Failure> {
        Self::build(&scratch.join("envoy-image"), &envoy()?, &["usr/local/bin/envoy"])
    }

    /// An image of the test kit's application, which begins as a container that does nothing.
    pub fn application(scratch: &Path) -> Result<Self, Failure> {
        let names = ["pause", "bin/go-httpbin", "bin/calls"];
        Self::build(&scratch.join("application-image"), &helper("application")?, &names)
    }

    /// An image of the development CA.
    pub fn development_ca(scratch: &Path) -> Result<Self, Failure> {
        let program = workspace().join("target/debug/development-ca");
        Self::build(&scratch.join("ca-image"), &program, &["usr/local/bin/development-ca"])
    }

    /// An image of Prometheus, or of one of the programs of its operator, which `make prometheus-operator` builds.
    pub fn prometheus(scratch: &Path, name: &str) -> Result<Self, Failure> {
        let program = workspace().join("target/prometheus-operator").join(name);
        Self::build(&scratch.join(format!("{name}-image")), &program, &[&format!("bin/{name}")])
    }

    /// An image of Istio's control plane, which `make istiod` builds.
    pub fn istiod(scratch: &Path) -> Result<Self, Failure> {
        let program = binary("ISTIOD_BINARY", "target/istiod/pilot-discovery", "run `make istiod`")?;
        Self::build(&scratch.join("istiod-image"), &program, &["usr/local/bin/pilot-discovery"])
    }

    /// An image of Istio's proxy, as far as it is public in parts: its agent with the bootstrap template, iptables as this
    /// machine has it, and Envoy as the project releases it, without Istio's own filters.
    pub fn istio_proxy(scratch: &Path) -> Result<Self, Failure> {
        let root = scratch.join("istio-proxy-image");
        lay_out(&root, &envoy()?, "usr/local/bin/envoy")?;
        let template = root.join("var/lib/istio/envoy");
        fs::create_dir_all(&template).or_fail("lay out an image")?;
        let agent = pilot_agent::program()?;
        let from = agent.with_file_name("envoy_bootstrap_tmpl.json");
        fs::copy(from, template.join("envoy_bootstrap_tmpl.json")).or_fail("lay out an image")?;
        lay_out(&root, Path::new(IPTABLES), IPTABLES.trim_start_matches('/'))?;
        for name in
            ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"]
        {
            symlink(IPTABLES, root.join("usr/sbin").join(name)).or_fail("lay out an image")?;
        }
        let extensions = format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH);
        output(Command::new("cp").args(["-r", "--parents", &extensions]).arg(&root))?;
        Self::build(&root, &agent, &["usr/local/bin/pilot-agent"])
    }

    /// An image to call from: curl and sleep as this machine has them.
    pub fn client(scratch: &Path) -> Result<Self, Failure> {
        let root = scratch.join("client-image");
        lay_out(&root, Path::new("/usr/bin/curl"), "usr/bin/curl")?;
        Self::build(&root, Path::new("/bin/sleep"), &["bin/sleep"])
    }

    /// Lays it out in `root`, the program under the first of these names and links to it under the others.
    fn build(root: &Path, program: &Path, names: &[&str]) -> Result<Self, Failure> {
        lay_out(root, program, names[0])?;
        for name in &names[1..] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap_or(root)).or_fail("lay out an image")?;
            symlink(Path::new("/").join(names[0]), &path).or_fail("lay out an image")?;
        }
        let recipe = format!("FROM scratch\nCOPY . /\nUSER 65535:65535\nENTRYPOINT [\"/{}\"]\n", names[0]);
        Self::cook(root, &recipe)
    }

    /// Another image whose shim its user may read as well as execute, without which gVisor starts no program.
    pub fn readable(root: &Path, image: &str) -> Result<Self, Failure> {
        fs::create_dir_all(root).or_fail("lay out an image")?;
        Self::cook(root, &format!("FROM {image}\nCOPY --from={image} --chmod=0555 {SHIM} {SHIM}\n"))
    }

    fn cook(root: &Path, recipe: &str) -> Result<Self, Failure> {
        fs::write(root.join("Containerfile"), recipe).or_fail("write an image's recipe")?;
        let image = Self(format!("localhost/{}", unique("program")));
        let build = ["build", "--quiet", "--layers=false", "--network", "none", "--tag", &image.0];
        podman(&[&build[..], &[&root.display().to_string()]].concat())?;
        Ok(image)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for ProgramImage {
    fn drop(&mut self) {
        let _ = podman(&["rmi", "--ignore", &self.0]);
    }
}

/// All of iptables' programs.
const IPTABLES: &str = "/usr/sbin/xtables-nft-multi";

/// Puts a program below `root` by this name, and beside it the libraries that it loads.
fn lay_out(root: &Path, program: &Path, name: &str) -> crate::Result {
    let listed = Command::new("ldd").arg(program).output().or_fail("run ldd")?;
    // One that loads none makes it fail.
    let listed = String::from_utf8_lossy(&listed.stdout);
    let libraries: Vec<_> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap_or(root)).or_fail("lay out an image")?;
    if !libraries.is_empty() {
        output(Command::new("cp").args(["--parents", "--dereference"]).args(libraries).arg(root))?;
    }
    output(Command::new("cp").arg("--dereference").arg(program).arg(&path)).map(drop)
}

fn envoy() -> Result<PathBuf, Failure> {
    binary("ENVOY_BINARY", "target/envoy/envoy", "run tests/testkit/install-envoy.sh")
}
