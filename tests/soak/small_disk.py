"""A disk of a few megabytes (tmpfs) that can be filled and made read-only. Needs to be root, or there is none."""

import contextlib
import subprocess
import time
from pathlib import Path

_BALLAST = "ballast"
BUSY_S = 5.0


class SmallDisk:
    """Mounted at `folder` by `mount`; unmounted by `close`, whatever else happens."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self._folder = folder
        self._size_mb = size_mb
        self._ballast = folder / _BALLAST

    def mount(self) -> bool:
        """Whether there is one now."""
        self.close()  # one that a killed run left behind
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._run("mount", "-t", "tmpfs", "-o", f"size={self._size_mb}m,mode=700", "tmpfs", str(self._folder))

    def fill(self) -> None:
        """To the last byte; what others delete afterwards is theirs."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(65536))
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(512))

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def read_only(self, *, on: bool) -> None:
        """A file that is being written at this moment keeps it from being so, a moment later it is."""
        deadline = time.monotonic() + BUSY_S
        while not self._run("mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self._folder)):
            assert time.monotonic() < deadline, "the small disk cannot be remounted"
            time.sleep(0.05)

    def close(self) -> None:
        if self._folder.is_mount():
            self._run("umount", "--lazy", str(self._folder))

    def _run(self, *command: str) -> bool:
        return subprocess.run(command, capture_output=True).returncode == 0
