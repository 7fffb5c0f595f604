//! Programs of the node that are away for a time, and a reboot, as far as it can be played where the kernel is the
//! machine's.

use std::fs;

use super::{Node, Program};
use crate::OrFail;

impl Node {
    /// Ends kubelet, containerd and all containers at once, takes away what a node has in memory alone, and starts kubelet
    /// and containerd again. Its kernel, its name server and kube-proxy go on.
    pub async fn reboot(&self) -> crate::Result {
        for program in [Program::Kubelet, Program::Containerd] {
            self.hold(program).await?;
        }
        self.exec(&["bash", "-c", END]).await?;
        for program in [Program::Containerd, Program::Kubelet] {
            self.release(program).await?;
        }
        self.containerd().await
    }

    /// SIGKILL for one of its programs, which is not started again until it is released.
    pub async fn hold(&self, program: Program) -> crate::Result {
        fs::write(self.held(program), "").or_fail("hold a program back")?;
        if let Some(pid) = self.pid(program) {
            self.exec(&["kill", "-KILL", &pid]).await?;
        }
        let what = format!("no {}", program.name());
        self.until(&what, || self.pid(program).is_none().then_some(())).await
    }

    /// Lets a program start that was held.
    pub async fn release(&self, program: Program) -> crate::Result {
        fs::remove_file(self.held(program)).or_fail("let a program start")?;
        self.until(program.name(), || self.pid(program)).await.map(drop)
    }
}

/// The containers' processes and those beside them, then what is mounted for them, then their control groups.
const END: &str = r#"
for _ in $(seq 100); do
    left=
    for pid in $(find /sys/fs/cgroup -path '*kubepods*' -name cgroup.procs -exec cat {} + | sort -u); do
        kill -KILL "$pid" && left=1
    done
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe") in
        */containerd-shim-runc-v2) kill -KILL "$(echo "$exe" | cut -d / -f 3)" && left=1 ;;
        esac
    done
    [ -n "$left" ] || break
    sleep 0.1
done 2>/dev/null
[ -z "$left" ] || { echo "containers run on" >&2; exit 1; }
awk '$2 ~ "^/run/(containerd|netns|node/kubelet|node/containerd)/" { print $2 }' /proc/mounts | sort -r |
    while read -r place; do umount -l "$place"; done
rm -rf /run/containerd/* /run/netns/*
find /sys/fs/cgroup -depth -path '*kubepods*' -type d -exec rmdir {} + 2>/dev/null
true
"#;
