# Run on the emulated host that is the storage: exports the file system on its disk over NFS version 4, and nothing older.
#
# The kernel asks user space who may see what, and what a file handle's beginning stands for; daemons of nfs-utils answer.
# Here the answers are known before and hold for ever, so they are given before the questions.
set -e
mkdir -p /run/export /run/recovery
mount -i -t ext4 /dev/vda /run/export
chmod 777 /run/export
mount -i -t nfsd nfsd /proc/fs/nfsd
cd /proc/fs/nfsd
echo "-3 +4 +4.1 +4.2" >versions
echo /run/recovery >nfsv4recoverydir
# A server that was never there before waits for nobody to reclaim locks; less than 10 s it does not take.
echo 10 >nfsv4gracetime
for_ever=2147483647
for address in 11 12 13 14 15 16 17 18 19; do
    echo "nfsd 10.77.0.$address $for_ever hosts" >/proc/net/rpc/auth.unix.ip/channel
done
# Read and write, from any port, with root as root, synchronous, without checks of subtrees, as file system number 0.
echo "hosts /run/export $for_ever $((0x2 | 0x400 | 0x2000)) 65534 65534 0" >/proc/net/rpc/nfsd.export/channel
printf 'hosts 1 \\x00000000 %s /run/export\n' "$for_ever" >/proc/net/rpc/nfsd.fh/channel
echo "tcp 2049" >portlist
echo 4 >threads
echo Y >v4_end_grace || true
