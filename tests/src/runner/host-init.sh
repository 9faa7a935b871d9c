#!/bin/busybox sh
# The first process of an emulated host. Loads the modules, puts the outer file system where it is outside (with devices,
# processes and temporary files of the host's own), sets the network up and starts the agent.
export PATH=/bin
. /host.conf

mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
# An NFS server takes clients of one name for one client that has started anew.
echo "$name" >/proc/sys/kernel/hostname
for module in $modules; do
    insmod "/modules/$module.ko" || echo "FT-HOST: cannot load $module"
done

ip link set lo up
ip link add br0 type bridge
echo 0 >/sys/class/net/br0/bridge/forward_delay
echo 0 >/sys/class/net/br0/bridge/multicast_snooping
# A bridge takes the lowest address of its ports if it is not told one: it would change with every tap.
ip link set br0 address "$(cat /sys/class/net/eth0/address)"
ip link set eth0 master br0
ip link set eth0 up
ip address add "$address" dev br0
ip link set br0 up

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none outer /outer || echo "FT-HOST: no outer file system"
number=0
while IFS= read -r source && IFS= read -r target; do
    if [ -d "/outer$source" ]; then mkdir "/kept/$number"; else : >"/kept/$number"; fi
    mount --bind "/outer$source" "/kept/$number"
    number=$((number + 1))
done </kept.list
mount --move /dev /outer/dev
mkdir -p /outer/dev/pts /outer/dev/shm
mount -t devpts devpts /outer/dev/pts
mount -t tmpfs tmpfs /outer/dev/shm
mount -t proc proc /outer/proc
mount -t sysfs sysfs /outer/sys
mount -t tmpfs -o mode=1777 tmpfs /outer/tmp
mount -t tmpfs -o mode=755 tmpfs /outer/run
# What the outside has in its own /tmp or /run and wants to be seen here as well. It may lie in what is shown already.
number=0
while IFS= read -r source && IFS= read -r target; do
    mkdir -p "/outer${target%/*}"
    if [ -d "/kept/$number" ]; then mkdir -p "/outer$target"; else : >>"/outer$target"; fi
    mount --move "/kept/$number" "/outer$target"
    number=$((number + 1))
done </kept.list

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
port=$(grep -lx agent /sys/class/virtio-ports/*/name)
port=${port%/name}
chroot /outer "$agent" "/dev/${port##*/}"
echo "FT-HOST: the agent ended"
poweroff -f
