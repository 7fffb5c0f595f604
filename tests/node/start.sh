#!/bin/bash
# A node of Kubernetes in namespaces and control groups of its own: `start.sh run NAME DIRECTORY`, in the network of the
# caller, with what node.rs put into DIRECTORY; it ends when it is killed, and all that it started with it.
# `start.sh clean NAME` removes the control groups that it leaves, and what still runs in them.
# Version 1 and 2 of control groups: the node sees its own as the only ones.
set -eu
groups=/sys/fs/cgroup
name=$2
unified() { [ -e $groups/cgroup.controllers ]; }
# The directories of the hierarchies: of the one, or of each.
hierarchies() { if unified; then echo $groups; else awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts; fi; }

clean() {
    local hierarchy group
    for hierarchy in $(hierarchies); do
        [ -d "$hierarchy/$name" ] || continue
        for _ in $(seq 50); do
            find "$hierarchy/$name" -depth -type d | while read -r group; do
                # Nobody else puts a process into a group of this name.
                rmdir "$group" 2>/dev/null || while read -r pid; do kill -9 "$pid"; done <"$group/cgroup.procs"
            done 2>/dev/null || true
            [ -d "$hierarchy/$name" ] || break
            sleep 0.1
        done
    done
}

join() {
    local hierarchy
    for hierarchy in $(hierarchies); do
        # The one that has no controllers beside those of version 1 is left alone.
        ! [ -e "$hierarchy/cgroup.controllers" ] || unified || continue
        if unified; then
            # What the caller's own group does not hand on, the node does without; kubelet says what it lacks.
            for controller in cpuset cpu io memory pids; do
                echo "+$controller" 2>/dev/null >"$hierarchy/cgroup.subtree_control" || true
            done
        fi
        mkdir -p "$hierarchy/$name"
        if [ -e "$hierarchy/$name/cpuset.cpus" ] && ! unified; then
            for file in cpuset.cpus cpuset.mems; do cat "$hierarchy/$file" >"$hierarchy/$name/$file"; done
        fi
        echo $$ >"$hierarchy/$name/cgroup.procs"
    done
}

case $1 in
clean) clean ;;
run)
    clean
    join
    exec unshare --cgroup --mount --uts --ipc --pid --fork --kill-child --mount-proc --propagation private -- \
        "$(dirname "$0")/init.sh" "$3"
    ;;
esac
