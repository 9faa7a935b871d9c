#!/bin/busybox sh
# The first process of the guest. Loads the modules, sets the network up as the kernel's command line says
# (ft.ip=ADDRESS/PREFIX ft.gw=ADDRESS), mounts the disk if there is one, and starts the agent, whose end is the end.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
while read -r module; do
    insmod "/modules/$module.ko" || echo "FT-GUEST: failed: cannot load $module"
done </modules.list
read -r words </proc/cmdline
for word in $words; do
    case $word in
    ft.ip=*) address=${word#ft.ip=} ;;
    ft.gw=*) gateway=${word#ft.gw=} ;;
    esac
done
ip link set lo up
if [ -n "$address" ] && [ -e /sys/class/net/eth0 ]; then
    ip address add "$address" dev eth0
    ip link set eth0 up
    [ -z "$gateway" ] || ip route add default via "$gateway"
fi
if [ -b /dev/vda ]; then
    mount -t ext4 /dev/vda /data || echo "FT-GUEST: failed: cannot mount /dev/vda"
fi
/bin/guest-agent
status=$?
cd /
umount /data 2>/dev/null
case $status in
0) poweroff -f ;;
10) reboot -f ;;
*) echo "FT-GUEST: failed: the agent ended with status $status" && poweroff -f ;;
esac
