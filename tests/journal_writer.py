"""A process that writes a journal until it is killed, and tells what it handed over.

    python journal_writer.py PATH BOOT group|before_publish

Each line on standard output is `seq monotonic_s` of a row that was handed over; with `before_publish` only of one that
was reported as written. After each commit `commit seconds`.
"""

import os
import sys
import time
from pathlib import Path

from journal_kit import TOPIC, Metrics, body

from inspectd.config import JournalConfig
from inspectd.verdict.journal import Journal


class Told(Metrics):
    def journal_committed(self, rows, seconds):
        say(f"commit {seconds}")


def say(line):
    os.write(1, f"{line}\n".encode())  # short enough to arrive whole or not at all


def main():
    path, boot, sync = sys.argv[1:]
    journal = Journal(JournalConfig(path=Path(path), sync=sync, max_rows=1000), boot, Told())
    journal.start()
    journal.event("boot", {})
    seq = 0
    while True:
        seq += 1
        journal.message(TOPIC, seq, body(seq, filler="x" * 400))
        if sync == "before_publish" and not journal.write_through(10):
            continue
        say(f"{seq} {time.monotonic()}")
        time.sleep(0.0003)


main()
