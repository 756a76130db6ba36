"""A machine with the real systemd as its first process, in namespaces of this one: up in a second, gone without trace.

Files are this machine's under an overlay, so that whatever is written is forgotten; the network is its own and only
loops back. Of systemd's units there are the few that others lean on, and the journal. Needs root, namespaces and
Debian's systemd.
"""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
TARGETS = ("sysinit", "basic", "multi-user", "shutdown", "network-online", "time-sync")
JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
PYTHON = "/usr/bin/python3"
"""Debian's. That of the tests may lie where services cannot read it."""
NAMESPACES = ("--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup")

BOOT = r"""
set -eu
folder=$1 checkout=$2; shift 2
mount -t tmpfs tmpfs "$folder/disk"
mkdir "$folder/disk/upper" "$folder/disk/work" "$folder/disk/root"
root=$folder/disk/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/disk/upper,workdir=$folder/disk/work" "$root"
mount -t proc proc "$root/proc"
mount -o bind,ro "$root/proc/sys" "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in run tmp dev opt usr/lib/systemd/system usr/lib/systemd/system-generators etc/systemd/system; do
    mount -t tmpfs -o mode=755 tmpfs "$root/$place"
done
chmod 1777 "$root/tmp"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts" "$root/dev/mqueue" "$root/run/lock"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
for place in "$checkout" "$folder/shared"; do mkdir -p "$root$place"; mount --bind "$place" "$root$place"; done
mount -o remount,bind,ro "$root$checkout"
for unit in "$@"; do
    case $unit in
    *.target) printf '[Unit]\nDefaultDependencies=no\n' >"$root/usr/lib/systemd/system/$unit" ;;
    *) cp "/usr/lib/systemd/system/$unit" "$root/usr/lib/systemd/system/" ;;
    esac
done
printf 'Wants=%s\nAfter=%s\n' systemd-journald.service systemd-journald.service \
    >>"$root/usr/lib/systemd/system/multi-user.target"
cd "$root"
mkdir old
pivot_root . old # a chroot may make no namespace of users
umount -l /old
mount --make-rshared / # credentials are mounted in one namespace for another
exec env -i container=pocket PATH="$PATH" NOTIFY_SOCKET="$folder/shared/notify" \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=0
"""


class NotPossibleError(Exception):
    """This machine cannot hold another one: no root, no namespaces, no systemd."""


class PocketMachine:
    """Started and stopped as a context manager; `run` runs a command in it as root."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.shared = folder / "shared"
        """A folder that is the same inside and outside, by the same path."""

    def __enter__(self):
        tools = (PYTHON, "/lib/systemd/systemd", "setpriv", "unshare", "nsenter", "pivot_root")
        if os.geteuid() != 0 or not all(map(shutil.which, tools)):
            raise NotPossibleError("needs root, and Debian's systemd and Python")
        (self._folder / "disk").mkdir(parents=True)
        self.shared.mkdir()
        units = [f"{name}.target" for name in TARGETS] + list(JOURNAL)
        places = [str(self._folder), str(CHECKOUT)]
        own = [*NAMESPACES, "--fork", "--kill-child", "--propagation=private"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(self.shared / "notify"))
            told.settimeout(0.2)
            self._outer = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", *own, "sh", "-c", BOOT, "boot", *places, *units],
                stdout=subprocess.DEVNULL,
                stderr=(self._folder / "boot.log").open("w"),
                stdin=subprocess.DEVNULL,
            )
            if not self._booted(told):
                self.__exit__()
                raise NotPossibleError((self._folder / "boot.log").read_text().strip() or "it did not boot in 30 s")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self._init = children[0]
        return self

    def _booted(self, told):
        for _ in range(150):
            try:
                if b"READY=1" in told.recv(4096).splitlines():
                    return True
            except TimeoutError:
                if self._outer.poll() is not None:
                    return False
        return False

    def __exit__(self, *exc):
        self._outer.send_signal(signal.SIGKILL)  # and with it, all that runs inside
        self._outer.wait(10)

    def popen(self, *command, **how):
        inside = ["nsenter", "--target", self._init, *NAMESPACES]
        clean = ["env", "-i", f"PATH={os.environ['PATH']}", "LANG=C.UTF-8"]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*inside, *clean, *map(str, command)], text=True, **streams | how)

    def run(self, *command, timeout=60):
        """Its CompletedProcess, with text."""
        with self.popen(*command) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def systemctl(self, *arguments):
        """What `systemctl …` prints, stripped, whatever its exit code."""
        return self.run("systemctl", *arguments).stdout.strip()
