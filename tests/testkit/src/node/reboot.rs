//! A reboot, as far as it can be played where the kernel is the machine's.

use std::fs;

use super::{Node, Program};
use crate::{Failure, OrFail};

impl Node {
    /// Ends kubelet, containerd and all containers at once, takes away what a node has in memory alone, and starts kubelet
    /// and containerd again. Its kernel, its name server and kube-proxy go on.
    pub async fn reboot(&self) -> Result<(), Failure> {
        let programs = [Program::Kubelet, Program::Containerd];
        let held = programs.map(|program| self.directory.join(format!("{}.held", program.name())));
        for (program, held) in programs.into_iter().zip(&held) {
            fs::write(held, "").or_fail("hold a program back")?;
            if let Some(pid) = self.pid(program) {
                self.exec(&["kill", "-KILL", &pid]).await?;
            }
            self.until(&format!("no {}", program.name()), || self.pid(program).is_none().then_some(())).await?;
        }
        self.exec(&["bash", "-c", END]).await?;
        for held in held.iter().rev() {
            fs::remove_file(held).or_fail("let a program start")?;
        }
        self.until("containerd", || self.pid(Program::Containerd)).await?;
        self.containerd().await
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
