#!/bin/sh
# Builds the guest that the tests of tests/vm boot: Debian's packages, its kernel with a V4L2 test camera, systemd.
#
#   tests/vm/build.sh FOLDER      FOLDER/disk.img (ext4), vmlinuz and initrd.img; nothing is done when they are there
#
# The packages come from wherever apt on this machine gets Debian's. Needs root and mmdebstrap. What goes wrong is one
# line on stderr.
set -eu

PROGRAM=tests/vm/build.sh
# qemu-guest-agent is how the tests run commands in the guest, v4l-utils how they handle its camera.
PACKAGES=systemd-sysv,udev,kmod,procps,initramfs-tools,zstd,linux-image-amd64,python3,python3-venv,qemu-guest-agent,v4l-utils
DISK=3G # sparse; two releases of inspectd take 1.2 GB
KEPT=/usr/share/keyrings # where Debian's keys are

fail() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

folder=${1:?usage: $PROGRAM FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd -P)
made=$(sha256sum <"$0" | cut -c 1-16)
[ "$(cat "$folder/made-by" 2>/dev/null)" != "$made" ] || exit 0

[ "$(id -u)" = 0 ] || fail "needs root"
for tool in mmdebstrap mkfs.ext4; do
    command -v $tool >/dev/null || fail "needs $tool: apt-get install mmdebstrap e2fsprogs"
done
# shellcheck disable=SC2016 # apt's own placeholders
sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
    'Created-By: Packages' 'Origin: Debian' 'Architecture: amd64' | sort -u)
release=$(printf '%s\n' "$sources" | cut -d ' ' -f 3 | sort | head -n 1)
[ -n "$release" ] || fail "apt knows no packages of Debian; apt-get update"

work=$(mktemp -d "$folder/work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
rm -f "$folder/made-by"
printf '%s\n' "$sources" >"$work/sources.list"
apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-Valid-Until)' >"$work/apt.conf" || true
# The virtual disk and its file system are all that the initial RAM disk must know: it loads in a second.
cat >"$work/initramfs.sh" <<'END'
mkdir -p "$1/etc/initramfs-tools"
printf 'MODULES=list\nCOMPRESS=zstd\n' >"$1/etc/initramfs-tools/initramfs.conf"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$1/etc/initramfs-tools/modules"
END
mmdebstrap --mode=root --variant=minbase --keyring=$KEPT --include=$PACKAGES \
    --aptopt="$work/apt.conf" --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='force-confold' --essential-hook="sh '$work/initramfs.sh' \"\$1\"" \
    "$release" "$work/root" "$work/sources.list" >"$folder/build.log" 2>&1 ||
    fail "the guest was not built: $(tail -n 1 "$folder/build.log") ($folder/build.log has more)"

cd "$work/root"
echo inspection-pc >etc/hostname
printf '127.0.0.1 localhost inspection-pc\n' >etc/hosts
printf '%s\n' '/dev/vda / ext4 errors=remount-ro 0 1' \
    'given /given 9p trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro,nofail 0 0' >etc/fstab
mkdir -p given var/log/journal etc/modules-load.d etc/modprobe.d etc/sysctl.d
printf 'vivid\n9pnet_virtio\n' >etc/modules-load.d/guest.conf # before anything is mounted over 9p
echo 'options vivid n_devs=1 node_types=0x1 vid_cap_nr=0' >etc/modprobe.d/camera.conf # a capture node and nothing else
: >etc/machine-id
# Nothing that a line would not have either, and that costs seconds of every boot.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer getty@tty1.service serial-getty@ttyS0.service; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
cp boot/vmlinuz-* "$folder/vmlinuz"
cp boot/initrd.img-* "$folder/initrd.img"
rm -rf boot/initrd.img-* var/cache/apt/* var/lib/apt/lists/*
cd "$folder"
rm -f disk.img
truncate -s $DISK disk.img
mkfs.ext4 -q -F -L guest -E lazy_itable_init=1,lazy_journal_init=1 -d "$work/root" disk.img ||
    fail "no file system was made of it; is the disk full?"
printf '%s\n' "$made" >made-by
