//! How a container of a manifest is run by podman.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use super::{
    Cluster,
    facts::{Facts, expand},
    manifest::{Container, Seccomp},
    quantity,
    volumes::Volumes,
};
use crate::{
    Failure, OrFail,
    confined::MEMLOCK,
    container::{LIMITS, podman, runtime},
    workspace,
};

/// What containerd gives a container that says nothing.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Where Kubernetes puts a container's last words when it is not told another place.
const TERMINATION_MESSAGE: &str = "/dev/termination-log";

/// What all containers of a pod share.
pub(super) struct Surroundings<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) cluster: &'a dyn Cluster,
    pub(super) volumes: &'a Volumes,
    /// The container that holds the pod's namespaces.
    pub(super) sandbox: &'a str,
    /// podman's labels of the container.
    pub(super) labels: &'a [String],
    /// Where files of the pod are.
    pub(super) directory: &'a Path,
}

impl Surroundings<'_> {
    /// podman's arguments for a container of this name, from this image; `pid_file` is written once it runs.
    pub(super) fn arguments(
        &self,
        container: &Container,
        name: &str,
        image: &str,
        pid_file: &Path,
    ) -> Result<Vec<String>, Failure> {
        let mut words = Words(runtime().map(str::to_owned).to_vec());
        words.add(&["run", "--pull", "never", "--name", name, "--log-driver", "none", "--http-proxy=false"]);
        words.add(&["--no-hosts", "--pidfile", &pid_file.display().to_string()]);
        self.labels.iter().for_each(|label| words.add(&["--label", label]));
        self.namespaces(&mut words);
        words.add(&LIMITS);
        words.add(&["--ulimit", &format!("memlock={MEMLOCK}:{MEMLOCK}")]);
        self.security(container, image, &mut words)?;
        resources(container, &mut words)?;
        self.mounts(container, &mut words)?;
        let variables = self.facts.variables(container, self.cluster)?;
        for (name, value) in &variables {
            words.add(&["--env", &format!("{name}={value}")]);
        }
        if let Some(directory) = &container.working_dir {
            words.add(&["--workdir", directory]);
        }
        let expanded = |texts: &[String]| texts.iter().map(|text| expand(text, &variables)).collect::<Vec<_>>();
        if !container.command.is_empty() {
            let command = serde_json::to_string(&expanded(&container.command)).or_fail("write the command")?;
            words.add(&["--entrypoint", &command]);
        }
        words.0.push(image.to_owned());
        words.0.extend(expanded(&container.args));
        Ok(words.0)
    }

    fn namespaces(&self, words: &mut Words) {
        let shared = format!("container:{}", self.sandbox);
        for namespace in ["--network", "--ipc", "--uts"] {
            words.add(&[namespace, &shared]);
        }
        if self.facts.pod.spec.share_process_namespace {
            words.add(&["--pid", &shared]);
        }
    }

    fn security(&self, container: &Container, image: &str, words: &mut Words) -> crate::Result {
        let (pod, own) = (&self.facts.pod.spec.security_context, &container.security_context);
        let user = own.run_as_user.or(pod.run_as_user);
        if let Some(user) = user {
            let group = own.run_as_group.or(pod.run_as_group).unwrap_or(0);
            words.add(&["--user", &format!("{user}:{group}")]);
        } else if own.run_as_group.or(pod.run_as_group).is_some() {
            return Err(Failure::new("runAsGroup without runAsUser"));
        }
        if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            not_root(user, image)?;
        }
        if let Some(group) = pod.fs_group {
            words.add(&["--group-add", &group.to_string()]);
        }
        words.add(&["--cap-drop", "all"]);
        for capability in capabilities(&own.capabilities.add, &own.capabilities.drop)? {
            words.add(&["--cap-add", capability]);
        }
        if own.read_only_root_filesystem {
            words.add(&["--read-only", "--read-only-tmpfs=false"]);
        }
        if own.allow_privilege_escalation == Some(false) {
            words.add(&["--security-opt", "no-new-privileges"]);
        }
        match own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()) {
            Some(Seccomp::RuntimeDefault) => Ok(()),
            None | Some(Seccomp::Unconfined) => {
                words.add(&["--security-opt", "seccomp=unconfined"]);
                Ok(())
            }
            Some(Seccomp::Localhost { localhost_profile }) => {
                words.add(&["--security-opt", &format!("seccomp={}", profile(localhost_profile)?.display())]);
                Ok(())
            }
        }
    }

    fn mounts(&self, container: &Container, words: &mut Words) -> crate::Result {
        for mount in &container.volume_mounts {
            let (path, read_only) = self.volumes.path(&mount.name)?;
            let access = if read_only || mount.read_only { "ro" } else { "rw" };
            words.add(&["--volume", &format!("{}:{}:{access}", path.display(), mount.mount_path)]);
        }
        for (name, place) in [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")] {
            words.add(&["--volume", &format!("{}:{place}:ro", self.directory.join(name).display())]);
        }
        let message = self.directory.join(format!("{}.termination-message", container.name));
        fs::write(&message, "")
            .and_then(|()| fs::set_permissions(&message, fs::Permissions::from_mode(0o666)))
            .or_fail(format!("create {}", message.display()))?;
        let place = container.termination_message_path.as_deref().unwrap_or(TERMINATION_MESSAGE);
        words.add(&["--volume", &format!("{}:{place}:rw", message.display())]);
        Ok(())
    }
}

struct Words(Vec<String>);

impl Words {
    fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(ToString::to_string));
    }
}

/// Without a limit of swap of its own, a limit of memory would be twice as high.
fn resources(container: &Container, words: &mut Words) -> crate::Result {
    let (limits, requests) = (&container.resources.limits, &container.resources.requests);
    if let Some(memory) = &limits.memory {
        let bytes = quantity::bytes(memory)?.to_string();
        words.add(&["--memory", &bytes, "--memory-swap", &bytes]);
    }
    if let Some(memory) = &requests.memory {
        // The scheduler's; it is looked at for its form.
        quantity::bytes(memory)?;
    }
    if let Some(cpu) = &limits.cpu {
        words.add(&["--cpus", &format!("{:.3}", quantity::milli_cpus(cpu)? as f64 / 1000.0)]);
    }
    if let Some(cpu) = &requests.cpu {
        words.add(&["--cpu-shares", &(quantity::milli_cpus(cpu)? * 1024 / 1000).max(2).to_string()]);
    }
    Ok(())
}

fn capabilities<'a>(add: &'a [String], drop: &'a [String]) -> Result<BTreeSet<&'a str>, Failure> {
    let known =
        |name: &String| CAPABILITIES.contains(&name.as_str()) || ["NET_ADMIN", "IPC_LOCK"].contains(&name.as_str());
    if let Some(unknown) = add.iter().find(|name| !known(name)) {
        return Err(Failure::new(format!("the capability {unknown} is not given here")));
    }
    let mut kept = BTreeSet::from(CAPABILITIES);
    for name in drop {
        match name.as_str() {
            "ALL" => kept.clear(),
            one => _ = kept.remove(one),
        }
    }
    kept.extend(add.iter().map(String::as_str));
    Ok(kept)
}

/// What kubelet refuses with CreateContainerConfigError.
fn not_root(user: Option<u32>, image: &str) -> crate::Result {
    let user = match user {
        Some(user) => Some(user),
        None => podman(&["image", "inspect", "--format", "{{.Config.User}}", image])?
            .split(':')
            .next()
            .and_then(|user| user.parse().ok()),
    };
    match user {
        Some(1..) => Ok(()),
        _ => Err(Failure::new(format!("runAsNonRoot, and the image {image} has no user with a number but root's"))),
    }
}

/// A profile of a node, which is one of those that are shipped.
fn profile(name: &str) -> Result<PathBuf, Failure> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    let path = workspace().join("packaging/seccomp").join(name);
    match plain && path.is_file() {
        true => Ok(path),
        false => Err(Failure::new(format!("the node has no seccomp profile {name}"))),
    }
}
