"""Disks that are full or cannot be written: a state and a count, never an error for who hands over."""

import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from journal_kit import BOOT, TOPIC, Metrics, body, eventually, journal, write

from inspectd.config import JournalConfig
from inspectd.errors import ConfigError
from inspectd.verdict.journal import Journal
from inspectd.verdict.journal import handover as handover_module
from inspectd.verdict.journal.verify import verify


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], capture_output=True)
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    """Leave no byte free."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        size = 65536
        while size:
            try:
                filler.write(b"x" * size)
            except OSError:
                size //= 2


def test_a_disk_that_is_full_at_start_is_no_error(small_disk):
    """The daemon starts, the state says failing, and once there is room all that was handed over is written."""
    fill(small_disk)
    path = small_disk / "journal.db"
    with journal(path, commit_ms=1) as made:
        assert made.state == "failing"
        assert "full" in made.why or "disk" in made.why
        for seq in range(1, 101):
            made.message(TOPIC, seq, body(seq))
        assert not made.write_through(10)
        (small_disk / "filler").unlink()
        made.told.until(lambda told: told.oks[-1:] == [True])
        assert made.write_through(10)
        assert made.told.lost == 0
    found = verify(path)
    assert (found.messages, found.faults, found.lost) == (100, [], [])


def test_what_was_last_in_force_is_known_on_a_full_disk_too(small_disk):
    """Else a restart with a full disk would go back to another recipe."""
    path = small_disk / "journal.db"
    write(path, BOOT, [("recipe", None, None, b'{"name": "small"}')])
    fill(small_disk)
    with journal(path, "boot-2") as made:
        assert made.state == "failing"
        assert made.last_event("recipe") == {"name": "small"}


def test_a_disk_that_fills_up_leaves_no_half_commit(small_disk, monkeypatch):
    """What is committed stays whole; what waited is written when there is room; what was lost between is told."""
    monkeypatch.setattr("inspectd.verdict.journal.handover.CALM_S", 0.01)
    monkeypatch.setattr(
        "inspectd.verdict.journal.journal.HandOver", lambda: handover_module.HandOver(capacity_rows=500)
    )
    path = small_disk / "journal.db"
    with journal(path, commit_ms=1) as made:
        made.event("boot", {})
        fill_from = 0
        while made.state == "ok":
            fill_from += 1
            made.message(TOPIC, fill_from, body(fill_from, filler="x" * 5000))
            made.write_through(10)
        assert verify(path).faults == []  # as it stands on the full disk
        for seq in range(fill_from + 1, fill_from + 1001):
            made.message(TOPIC, seq, body(seq))
        assert made.told.lost > 400
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        made.told.until(lambda told: told.oks[-1:] == [True])
        eventually(lambda: made.flush(10))
    found = verify(path)
    assert found.faults == []
    assert found.messages + made.told.lost == fill_from + 1000
    assert len(found.lost) == 1


def test_a_read_only_file_system_is_refused_at_start(small_disk):
    """Waiting will not help: one line that names the key."""
    path = small_disk / "journal.db"
    write(path, BOOT, [("boot", None, None, b"{}")])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ConfigError, match=rf"^journal\.path: {path}: cannot be written"):
        Journal(JournalConfig(path=path), BOOT, Metrics()).start()
    assert verify(path).faults == []  # but it can be read


def test_a_folder_that_vanishes_is_a_state(tmp_path):
    """The whole folder is removed under the daemon; when it is back, a new journal is begun."""
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "journal.db"
    with journal(path, commit_ms=1) as made:
        made.message(TOPIC, 1, body(1))
        assert made.write_through(10)
        shutil.rmtree(folder)
        made.message(TOPIC, 2, body(2))
        eventually(lambda: made.why is not None and f"there is no folder {folder}" in made.why)
        folder.mkdir()
        made.told.until(lambda told: told.oks == [True, False, True])
    assert verify(path).messages == 1


LIMITED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from journal_kit import TOPIC, body, eventually, journal
with journal(Path({path!r}), commit_ms=1) as made:
    seq = 0
    while made.state == "ok":
        seq += 1
        made.message(TOPIC, seq, body(seq, filler="x" * 5000))
        made.write_through(10)
    print(made.why)
"""


def test_a_limit_on_the_file_size_is_a_state_too(tmp_path):
    """As systemd's LimitFSIZE= sets it: no signal ends the process, what was committed is whole."""
    path = tmp_path / "journal.db"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    program = LIMITED.format(tests=os.path.dirname(__file__), path=str(path))  # noqa: PTH120
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=limit, timeout=60)
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    found = verify(path)
    assert (found.faults, found.messages > 10) == ([], True)


def test_a_disk_that_is_unmounted_is_not_replaced_by_its_mount_point(small_disk):
    """A new journal on the disk around it would hide once the right one is back: what is handed over waits for that."""
    elsewhere = small_disk.with_name("elsewhere")
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", small_disk, elsewhere], check=True)
    try:
        path = small_disk / "journal.db"
        with journal(path, commit_ms=1) as made:
            made.message(TOPIC, 1, body(1))
            assert made.write_through(10)
            subprocess.run(["umount", "--lazy", small_disk], check=True)
            made.message(TOPIC, 2, body(2))
            eventually(lambda: made.why is not None and "not mounted any more" in made.why)
            assert list(small_disk.iterdir()) == []
            subprocess.run(["mount", "--bind", elsewhere, small_disk], check=True)
            made.told.until(lambda told: told.oks[-1:] == [True])
            assert made.write_through(10)
        assert verify(path).messages == 2
    finally:
        subprocess.run(["umount", "--lazy", elsewhere], check=True)


def test_nothing_is_opened_on_a_disk_without_room(small_disk):
    """SQLite maps a file there into memory; a page without a block would end the process instead of being an error."""
    path = small_disk / "journal.db"
    write(path, BOOT, [("boot", None, None, b"{}")])
    fill(small_disk)
    with journal(path, "boot-2") as made:
        assert "its disk is full" in made.why
        assert not path.with_name("journal.db-shm").exists()
