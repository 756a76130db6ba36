"""What the journal costs: its caller, its commits, a replay, and what it takes from a busy thread.

    python tests/bench/journal.py [--rows 100000] [--dir DIR]

The body is a real verdict message. `caller` and shares of a core are CPU time, everything else is wall time. DIR should
lie on the disk that is meant: a commit costs one fsync.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from inspectd.config import JournalConfig
from inspectd.machine import machine
from inspectd.verdict.journal import Journal
from inspectd.verdict.journal.database import open_to_read
from inspectd.verdict.journal.replay import read_page
from inspectd.verdict.journal.verify import verify
from inspectd.verdict.schema import FrameInfo, Latency, Verdict, encode, timestamp

TOPIC = "verdict/line1/part/"
BODY = encode(
    Verdict(
        boot_id="0" * 32,
        seq=1,
        camera="line1",
        roi="part",
        verdict="pass",
        label="good",
        score=0.98,
        scores={"good": 0.98, "scratch": 0.01, "dent": 0.005, "stain": 0.005, "empty": 0.0},
        frame=FrameInfo(index=1, pts=0.0333, clock="rtcp"),
        captured_at=timestamp(time.time()),
        published_at=timestamp(time.time()),
        latency_ms=Latency(decode=1.0, queue=1.0, engine=5.0, total=9.0),
        model="0" * 12,
        config="0" * 12,
    ),
    "json",
)


class Commits:
    """The journal's metrics, as far as they are of interest here."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rows: list[int] = []

    def journal_committed(self, rows: int, seconds: float) -> None:
        self.rows.append(rows)
        self.seconds.append(seconds)

    def journal_lost(self, rows: int) -> None:
        raise SystemExit("rows were lost: the bench hands over faster than this disk takes")

    def journal_size(self, rows: int, size_bytes: int) -> None: ...
    def journal_ok(self, ok: bool) -> None: ...


def paced(journal: Journal, seconds: float, per_s: float) -> str:
    """Hand over at the rate of a line, eight rows at a time as a batch of the engine brings them."""
    rows = int(seconds * per_s)
    caller, begin, all_begin = 0.0, time.monotonic(), time.process_time()
    for first in range(1, rows + 1, 8):
        before = time.thread_time()
        for seq in range(first, first + 8):
            journal.message(TOPIC, seq, BODY)
        caller += time.thread_time() - before
        time.sleep(max(0.0, begin + (first + 7) / per_s - time.monotonic()))
    assert journal.flush(10)
    everything = (time.process_time() - all_begin) / rows
    return (
        f"caller {caller / rows * 1e6:.1f} µs a row, with the journal's thread {everything * 1e6:.0f} µs: "
        f"{everything * per_s:.2%} of a core"
    )


def flat_out(journal: Journal, rows: int) -> str:
    """As fast as the disk takes them, never more than 20,000 waiting."""
    caller, begin = 0.0, time.monotonic()
    for first in range(1, rows + 1, 20_000):
        before = time.thread_time()
        for seq in range(first, min(first + 20_000, rows + 1)):
            journal.message(TOPIC, seq, BODY)
        caller += time.thread_time() - before
        assert journal.flush(60)
    return f"{rows / (time.monotonic() - begin):,.0f} rows/s, caller {caller / rows * 1e6:.1f} µs a row"


def through(journal: Journal, turns: int) -> tuple[float, float]:
    """Milliseconds of `before_publish`, one row each, median and 99th percentile: so much later it is sent."""
    taken = []
    for seq in range(1, turns + 1):
        begin = time.monotonic()
        journal.message(TOPIC, seq, BODY)
        assert journal.write_through(10)
        taken.append((time.monotonic() - begin) * 1000)
    taken.sort()
    return taken[turns // 2], taken[turns * 99 // 100]


def measure(folder: Path, name: str, what: Callable[[Journal], str]) -> Path:
    path = folder / f"{''.join(filter(str.isalnum, name))}.db"
    commits = Commits()
    journal = Journal(JournalConfig(path=path), "0" * 32, commits)
    journal.start()
    said = what(journal)
    assert journal.stop(60)
    taken = sorted(commits.seconds)
    print(
        f"{name:<22} {said}; {len(taken)} commits of {statistics.mean(commits.rows):.0f} rows, "
        f"p50 {taken[len(taken) // 2] * 1000:.1f} ms, p99 {taken[len(taken) * 99 // 100] * 1000:.1f} ms"
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    print(f"{machine()}; body of {len(BODY)} bytes")
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        for per_s in (30, 250, 2000):
            measure(folder, f"paced {per_s} rows/s", partial(paced, seconds=3, per_s=per_s))
        measure(
            folder, "before_publish", lambda j: "a row through in {:.1f} ms, p99 {:.1f} ms".format(*through(j, 500))
        )
        path = measure(folder, "flat out", partial(flat_out, rows=options.rows))
        size = path.stat().st_size
        print(f"{'size':<22} {size / options.rows:.0f} bytes a row, {size / options.rows / len(BODY):.2f} of the body")
        with closing(open_to_read(path)) as connection:
            begin = time.monotonic()
            page = read_page(connection, "0" * 32, TOPIC, options.rows // 2, 1000)
            taken_ms = (time.monotonic() - begin) * 1000
            print(f"{'replay':<22} a page of {len(page.messages)} messages in {taken_ms:.1f} ms")
        begin = time.monotonic()
        assert verify(path).faults == []
        print(f"{'verify':<22} {options.rows / (time.monotonic() - begin):,.0f} rows/s")


if __name__ == "__main__":
    main()
