"""kill -9 at any moment: what was committed is there, and what is not was handed over within the bound."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journal_kit import TOPIC, query

from inspectd.verdict.journal.verify import verify

COMMIT_S = 0.05
SLACK_S = 0.3
"""For the scheduler of a loaded machine: the thread may be late, the bound itself is counted without it."""


class Writer:
    """One boot of the writing process."""

    def __init__(self, path, boot, sync):
        self.path, self.boot, self.sync = path, boot, sync
        program = Path(__file__).with_name("journal_writer.py")
        self.process = subprocess.Popen([sys.executable, program, path, boot, sync], stdout=subprocess.PIPE)

    def kill(self, after_s):
        """Let it write for so long from its first row on, then kill it; reads along all the time."""
        out = self.process.stdout.fileno()
        told = b""
        while b"\n1 " not in b"\n" + told:
            more = os.read(out, 65536)
            assert more, "the writer did not start"
            told += more
        end = time.monotonic() + after_s
        while time.monotonic() < end:
            told += os.read(out, 65536)
        self.process.send_signal(signal.SIGKILL)
        self.killed_at = time.monotonic()
        while more := os.read(out, 65536):
            told += more
        self.process.wait(10)
        self.process.stdout.close()
        lines = [line.split() for line in told.decode().splitlines()]
        self.commits = [float(line[1]) for line in lines if line[0] == "commit"]
        self.rows = {int(line[0]): float(line[1]) for line in lines if line[0] != "commit"}

    def check(self):
        """How long before its death the oldest row that is missing was handed over, in seconds."""
        found = verify(self.path)
        assert found.faults == []
        ((newest,),) = query(
            self.path, "SELECT coalesce(max(seq), 0) FROM rows WHERE boot_id = ? AND topic = ?", self.boot, TOPIC
        )
        missing = [at for seq, at in self.rows.items() if seq > newest]
        if self.sync == "before_publish":
            assert missing == []
            return 0.0
        lost_s = self.killed_at - min(missing, default=self.killed_at)
        assert lost_s <= COMMIT_S + 2 * max(self.commits, default=0) + SLACK_S
        return lost_s


def test_after_kill_9_what_was_committed_is_there(tmp_path):
    """Both ways of writing, at random moments."""
    writers = [Writer(tmp_path / f"{sync}.db", "boot-1", sync) for sync in ("group", "before_publish")]
    for writer in writers:
        writer.kill(random.uniform(0.4, 0.6))  # longer than the bound, so that nothing written would show
    for writer in writers:
        writer.check()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sync", ["group", "before_publish"])
def test_200_times_kill_9(tmp_path, sync):
    """The same journal all the time, with retention at work; prints the longest loss."""
    lost, rows = [], 0
    for turn in range(200):
        writer = Writer(tmp_path / "journal.db", f"boot-{turn}", sync)
        writer.kill(random.uniform(0, 0.7))
        lost.append(writer.check())
        rows += len(writer.rows)
    print(f"{sync}: {rows} rows handed over, longest loss {max(lost) * 1000:.0f} ms before the kill")
