# Runs as the first process of a node's PID, mount and UTS namespaces, inside
# its network namespace: sh node.sh NAME DIR MADE ADDRESS. When it ends, the
# kernel ends the rest of the node. DIR has the node's files and outlives it.
set -eu
name=$1 dir=$2 made=$3 address=$4
mount --make-rprivate / # nothing that is mounted here is seen outside
mount --make-rshared /  # but in the node's Pods
mount -t proc proc /proc
echo "$name" >/proc/sys/kernel/hostname

# /sys shows this network namespace; the cgroups stay in it.
mkdir -p "$dir/cgroup"
mount --rbind /sys/fs/cgroup "$dir/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$dir/cgroup" /sys/fs/cgroup

# /run is empty after a boot; what a node keeps is its own.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$dir/lib" "$dir/log" /run/netns
mount --bind "$dir/lib" /var/lib
mount --bind "$dir/log" /var/log
# A CNI plugin that is told no other place, and the kubelet, write here.
if [ -d /opt ]; then mkdir /run/opt; mount --bind /run/opt /opt; fi

# The kubelet and kube-proxy want to write these, and they are the machine's:
# show them what they want to see.
set_to() {
	[ -e "$2" ] || return 0
	echo "$1" >"/run/$(basename "$2")"
	mount --bind "/run/$(basename "$2")" "$2"
}
set_to 1 /proc/sys/vm/overcommit_memory
set_to 10 /proc/sys/kernel/panic
set_to 1 /proc/sys/kernel/panic_on_oops

PATH=$made/root/usr/bin:$made/root/usr/sbin:$PATH
export PATH
containerd -c "$dir/containerd.toml" >>"$dir/containerd.log" 2>&1 &
tries=0
until ctr version >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 600 ] || { echo "containerd does not answer"; exit 1; }
	sleep 0.1
done
for image in "$dir"/images/*; do
	ctr -n k8s.io images import "$image" >>"$dir/containerd.log" 2>&1
done
[ ! -e "$dir/kube-proxy.yaml" ] ||
	"$made/kubernetes" kube-proxy --config="$dir/kube-proxy.yaml" >>"$dir/kube-proxy.log" 2>&1 &
"$made/kubernetes" kubelet --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.kubeconfig" \
	--hostname-override="$name" --node-ip="$address" >>"$dir/kubelet.log" 2>&1 &
wait $!
