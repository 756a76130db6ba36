"""Real disks with real faults: an ext4 file system in a file, mounted for the test; and one that answers late.

A mounted disk needs root and loop devices, the slow one a C compiler; where there is none the test is skipped.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

MEGABYTE = 2**20


class Disk:
    """A small ext4 disk, mounted at `folder`. A context manager; whatever happens, nothing stays mounted."""

    def __init__(self, folder: Path, megabytes=12):
        self.folder = folder
        self._image = folder.with_name(f"{folder.name}.img")
        self._size = megabytes * MEGABYTE
        self._device = None

    def __enter__(self):
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size)
        if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not shutil.which("losetup"):
            pytest.skip("a disk of its own needs root, mkfs.ext4 and losetup")
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self._image], check=True)
        found = subprocess.run(["losetup", "--find", "--show", self._image], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"no loop device here: {found.stderr.strip()}")
        self._device = found.stdout.strip()
        try:
            if mounted := self._mount():
                pytest.skip(f"mounting is not permitted here: {mounted}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        subprocess.run(["umount", "--lazy", self.folder], capture_output=True)
        if self._device is not None:
            subprocess.run(["losetup", "--detach", self._device], capture_output=True)

    def fill(self):
        """Leave no byte free."""
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            size = MEGABYTE
            while size:
                try:
                    filler.write(b"x" * size)
                except OSError:
                    size //= 2
            os.fsync(filler.fileno())

    def make_room(self):
        (self.folder / "filler").unlink()

    def break_down(self):
        """What the kernel does to a disk with errors: from now on it can only be read, whoever has a file open."""
        subprocess.run(["mount", "-o", "remount,abort", self.folder], check=True)

    def repair(self):
        """Unmount it once nobody has a file open any more, check it, mount it again."""
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", self.folder], capture_output=True).returncode:
            assert time.monotonic() < deadline, "somebody keeps a file of the broken disk open"
            time.sleep(0.05)
        # 1: errors were corrected
        assert subprocess.run(["e2fsck", "-p", self._device], capture_output=True).returncode in (0, 1)
        self.come_back()

    def vanish(self):
        """Its place is an empty folder of the disk around it; what is open stays open."""
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def come_back(self):
        assert self._mount() == ""

    def _mount(self):
        """What went wrong, or nothing."""
        done = subprocess.run(["mount", "-t", "ext4", self._device, self.folder], capture_output=True, text=True)
        return done.stderr.strip() if done.returncode else ""


class SlowDisk:
    """A folder whose disk stops answering for as long as the test likes; the process needs `env`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._gate = folder.with_name(f"{folder.name}.hangs")
        self._library = folder.with_name("slow_disk.so")

    def __enter__(self):
        if not shutil.which("gcc"):
            pytest.skip("a slow disk needs gcc")
        self.folder.mkdir()
        source = Path(__file__).with_name("slow_disk.c")
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", self._library, source, "-ldl"], check=True)
        return self

    def __exit__(self, *exc):
        self.answer()

    @property
    def env(self):
        folder = {"SLOW_DISK": str(self.folder.resolve()), "SLOW_DISK_WHILE": str(self._gate)}
        return os.environ | folder | {"LD_PRELOAD": str(self._library)}

    def hang(self):
        self._gate.touch()

    def answer(self):
        self._gate.unlink(missing_ok=True)
