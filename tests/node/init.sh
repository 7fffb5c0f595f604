#!/bin/bash
# The first process of a node, in namespaces of its own: init.sh DIRECTORY. It mounts what a node has, and starts
# containerd, kubelet, kube-proxy and the DNS again whenever they end, as systemd would. DIRECTORY/programs names where
# the programs are; /run/node is DIRECTORY. While /run/node/NAME.held is there, NAME is not started; containerd, and thereby
# containers, may lock as many KiB of memory as /run/node/memlock says.
set -eu
unified=
! [ -e /sys/fs/cgroup/cgroup.controllers ] || unified=yes
directory=$1

hostname "$(cat "$directory/name")"
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/node
mount --bind "$directory" /run/node
cd /run/node
mkdir -p log pods
# Where kubelet puts links to the logs, whatever it is told.
mount -t tmpfs tmpfs /var/log
mount -t sysfs sysfs /sys
if [ -n "$unified" ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # Only a group without processes hands its controllers on.
    mkdir -p /sys/fs/cgroup/init
    echo $$ >/sys/fs/cgroup/init/cgroup.procs
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        [ -n "$controllers" ] || continue
        mkdir -p "/sys/fs/cgroup/${controllers#name=}"
        case $controllers in name=*) controllers=none,$controllers ;; esac
        mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/${controllers#*name=}"
        case $controllers in
        none,*) ;;
        *,*) for one in ${controllers//,/ }; do ln -s "$controllers" "/sys/fs/cgroup/$one"; done ;;
        esac
    done </proc/self/cgroup
fi
echo 1 >/proc/sys/net/ipv4/ip_forward

read -r kubernetes containerd <programs
export PATH=$containerd:$kubernetes:/usr/sbin:/usr/bin:/sbin:/bin
keep() {
    local name=$1 memlock
    shift
    while :; do
        while [ -e "/run/node/$name.held" ]; do sleep 0.1; done
        memlock=$(cat /run/node/memlock)
        (ulimit -l "$memlock"; exec "$@") >>"log/$name" 2>&1 &
        echo $! >"$name.pid.new"
        mv "$name.pid.new" "$name.pid"
        wait $! || true
        rm -f "$name.pid"
        sleep 0.2
    done
}
ulimit -n "$(ulimit -Hn)"
keep containerd containerd --config containerd.toml &
keep kubelet kubelet --config=kubelet.json --kubeconfig=node.kubeconfig --hostname-override="$(hostname)" \
    --root-dir=/run/node/kubelet --cert-dir=/run/node/pki --v=2 &
keep kube-proxy kube-proxy --config=proxy.json --hostname-override="$(hostname)" &
keep cluster-dns cluster-dns --kubeconfig=admin.kubeconfig --listen="$(cat address):53" &
wait
