#!/bin/bash
# Says why this machine cannot run a node of Kubernetes, one reason a line on standard output, and fails; or says nothing.
# What a package would bring is for the Makefile to install; this is about the kernel, and what it lets us do.
scratch=$(mktemp -d "$1/check.XXXXXX") || exit
trap 'rm -rf "$scratch"' EXIT
failed=0
# Tries a command; what it writes is the reason.
try() {
    local what=$1 told
    shift
    told=$("$@" 2>&1) && return
    failed=1
    echo "$what: $(echo "$told" | tail -n 1)"
}

if [ "$(id -u)" != 0 ]; then
    echo "this is not root"
    exit 1
fi
try "namespaces" unshare --cgroup --mount --uts --ipc --pid --net --fork --mount-proc true
try "bridges and pairs of interfaces" unshare --net sh -ec '
    ip link add one type bridge
    ip link add two type veth peer name three'
# What kube-proxy writes with iptables.
try "rules of iptables" unshare --net sh -ec '
    iptables -t nat -A POSTROUTING -m comment --comment a -m mark --mark 0x4000 -j MASQUERADE
    iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL -m statistic --mode random --probability 0.5 -j MARK --or-mark 1
    iptables -t nat -A OUTPUT -p tcp -m tcp -j DNAT --to-destination 127.0.0.1:1
    iptables -A FORWARD -m conntrack --ctstate RELATED -j ACCEPT'
mkdir "$scratch"/{lower,upper,work,all}
try "a /sys of one's own" unshare --mount --net mount -t sysfs sysfs "$scratch/all"
try "overlays in $1" unshare --mount mount -t overlay overlay \
    -o "lowerdir=$scratch/lower,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/all"

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    controllers=" $(cat /sys/fs/cgroup/cgroup.controllers) "
    try "control groups" unshare --mount --cgroup mount -t cgroup2 cgroup2 "$scratch/all"
else
    controllers=" $(cut -d : -f 2 /proc/self/cgroup | tr '\n,' '  ') "
    # Where several share a hierarchy, it has all of their names.
    memory=$(cut -d : -f 2 /proc/self/cgroup | grep -w memory)
    try "control groups" unshare --mount --cgroup mount -t cgroup -o "$memory" cgroup "$scratch/all"
fi
for controller in cpu cpuset memory pids; do
    case $controllers in
    *" $controller "*) ;;
    *) failed=1; echo "control groups: there is no controller $controller here" ;;
    esac
done
for hierarchy in $(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts); do
    try "control groups" mkdir "$hierarchy/sds-shim-check-$$"
    rmdir "$hierarchy/sds-shim-check-$$" 2>/dev/null
done
exit $failed
