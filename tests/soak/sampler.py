"""Once a second: what the daemon's process takes, what its metrics say, and how fast this machine is just now."""

import contextlib
import os
import re
import time
from pathlib import Path

import numpy as np

_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(inspectd_\w+?)(?:{(.*)})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def process_sample(pid: int, *, thorough: bool) -> dict[str, float]:
    """Memory (kB), descriptors, threads, children, CPU seconds of a process; `thorough` adds PSS, which costs more."""
    process = Path("/proc", str(pid))
    status = dict(re.findall(r"^(\w+):\s+(\d+)", (process / "status").read_text(), re.MULTILINE))
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    children = 0
    for task in list((process / "task").iterdir()):
        with contextlib.suppress(OSError):
            children += len((task / "children").read_text().split())
    sample = {
        "rss_kb": int(status["VmRSS"]),
        "anon_kb": int(status["RssAnon"]),
        "threads": int(status["Threads"]),
        "fds": len(list((process / "fd").iterdir())),
        "children": children,
        "cpu_s": (int(fields[11]) + int(fields[12])) / _TICK,
    }
    if thorough:
        pss = re.search(r"^Pss:\s+(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)
        sample["pss_kb"] = int(pss[1]) if pss else 0
    return sample


def folder_sample(folder: Path) -> dict[str, float]:
    """Bytes that the journal with its log and the evidence take, and how many pictures there are."""
    journal = sum(size for path in folder.glob("journal.db*") if (size := _size(path)))
    evidence = pictures = 0
    for root, _, names in os.walk(folder / "evidence"):
        for name in names:
            if not name.startswith("ballast"):
                evidence += _size(Path(root, name))
                pictures += 1
    return {"journal_b": journal, "evidence_b": evidence, "evidence_files": pictures}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # taken away meanwhile
        return 0


class Metrics:
    """One scrape, taken apart."""

    def __init__(self, text: str) -> None:
        self._samples = [(name, dict(_LABEL.findall(labels)), float(v)) for name, labels, v in _SAMPLE.findall(text)]

    def total(self, name: str, **labels: str) -> float:
        return sum(v for n, own, v in self._samples if n == name and labels.items() <= own.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of a metric by one label."""
        sums: dict[str, float] = {}
        for found, labels, value in self._samples:
            if found == name:
                sums[labels[label]] = sums.get(labels[label], 0) + value
        return sums

    def unbalanced(self) -> list[str]:
        """Accounts for which captured + without frame != verdicts + dropped + in flight, in words."""
        wrong = []
        for name, own, in_flight in self._samples:
            if name == "inspectd_frames_in_flight":
                captured = self.total("inspectd_frames_captured_total", camera=own["camera"])
                without = self.total("inspectd_verdicts_without_frame_total", **own)
                verdicts = self.total("inspectd_verdicts_total", **own)
                dropped = self.total("inspectd_frames_dropped_total", **own)
                if captured + without != verdicts + dropped + in_flight:
                    wrong.append(f"{own}: {captured} + {without} != {verdicts} + {dropped} + {in_flight}")
        return wrong

    def sample(self) -> dict[str, object]:
        """What is kept of a scrape; counters as they are, since the daemon's start."""
        return {
            "captured": self.by("inspectd_frames_captured_total", "camera"),
            "no_result": {k or "none": v for k, v in self.by("inspectd_verdicts_total", "reason").items() if v},
            "dropped": {k: v for k, v in self.by("inspectd_frames_dropped_total", "reason").items() if v},
            "evidence_lost": {k: v for k, v in self.by("inspectd_evidence_lost_total", "reason").items() if v},
            "evidence_kept": self.total("inspectd_evidence_pictures_total"),
            "reconnects": self.total("inspectd_camera_reconnects_total"),
            "journal_rows": self.total("inspectd_journal_rows"),
            "journal_lost": self.total("inspectd_journal_lost_rows_total"),
            "subscribers": self.total("inspectd_subscribers"),
            "ready": self.total("inspectd_ready"),
        }


class Yardstick:
    """The same little work each time: how long it takes on this machine's clock is how much machine there is."""

    def __init__(self) -> None:
        self._left, self._right = np.random.default_rng(0).random((2, 160, 160))

    def measure_ms(self) -> float:
        """CPU milliseconds of this thread: not whether it had to wait, but how fast it was when it ran."""
        began = time.thread_time()
        for _ in range(4):
            self._left @ self._right
        return (time.thread_time() - began) * 1000
