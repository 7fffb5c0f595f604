//! What holds the namespaces that the containers of a pod share.

use crate::{
    Failure, OrFail,
    container::{Container, LIMITS, podman},
};

/// A container that does nothing, in a network namespace with a loopback interface.
pub(super) struct Sandbox {
    container: Container,
    pid: u32,
}

impl Sandbox {
    /// Starts it with these of podman's labels.
    pub(super) fn start(pause: &str, hostname: &str, labels: &[String]) -> Result<Self, Failure> {
        let container = Container::named();
        let mut arguments = vec!["run", "--detach", "--pull", "never", "--name", container.name()];
        arguments.extend(["--log-driver", "none", "--network", "none", "--no-hosts", "--hostname", hostname]);
        arguments.extend(["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"]);
        arguments.extend(["--security-opt", "no-new-privileges", "--http-proxy=false"]);
        arguments.extend(LIMITS);
        arguments.extend(labels.iter().flat_map(|label| ["--label", label]));
        arguments.push(pause);
        podman(&arguments)?;
        let pid = podman(&["container", "inspect", "--format", "{{.State.Pid}}", container.name()])?;
        let pid = pid.parse().or_fail(format!("read the process id of {}", container.name()))?;
        Ok(Self { container, pid })
    }

    /// Its container's name.
    pub(super) fn name(&self) -> &str {
        self.container.name()
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}
