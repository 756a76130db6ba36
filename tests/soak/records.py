"""What a soak leaves behind, line by line as it comes, so that a killed one can still be reported."""

import array
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MOST_BROKEN = 200
"""Of one promise; one that breaks with every frame must not fill the disk."""


class Records:
    """The writing side. Every method may be called from any thread.

    meta.json, samples.jsonl, faults.jsonl (the last line of a number counts), broken.jsonl, latency.bin (float32 pairs:
    seconds since the start, milliseconds), end.json.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._meta: dict = {}
        self._broken: dict[str, int] = {}

    def write_meta(self, meta: dict) -> None:
        self._meta |= meta
        (self._folder / "meta.json").write_text(json.dumps(self._meta, indent=1))

    def begin(self, pid: int) -> None:
        self.write_meta({"pid": pid, "began": time.time()})

    def sample(self, sample: dict) -> None:
        self._append("samples.jsonl", sample)

    def fault(self, record: dict) -> None:
        self._append("faults.jsonl", record)

    def broken(self, promise: str, detail: str) -> None:
        """A promise was broken just now."""
        with self._lock:
            count = self._broken[promise] = self._broken.get(promise, 0) + 1
        if count <= MOST_BROKEN:
            self._append("broken.jsonl", {"at": time.time(), "promise": promise, "detail": detail})

    def latencies(self, at: array.array, ms: array.array, began: float) -> None:
        """Verdicts of the belts: monotonic seconds of their arrival and milliseconds from capture to publication."""
        pairs = np.empty((len(ms), 2), np.float32)
        pairs[:, 0], pairs[:, 1] = np.array(at) - began, ms
        with self._lock, (self._folder / "latency.bin").open("ab") as file:
            file.write(pairs.tobytes())

    def end(self, end: dict) -> None:
        (self._folder / "end.json").write_text(json.dumps(end, indent=1))

    def _append(self, name: str, value: dict) -> None:
        line = json.dumps(value)
        with self._lock, (self._folder / name).open("a") as file:
            file.write(line + "\n")


class Recorded:
    """The reading side, of a soak that has ended or is under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict = json.loads((folder / "meta.json").read_text())
        self.end: dict | None = (
            json.loads((folder / "end.json").read_text()) if (folder / "end.json").exists() else None
        )
        self.samples = list(_lines(folder / "samples.jsonl"))
        self.faults = list({fault["number"]: fault for fault in _lines(folder / "faults.jsonl")}.values())
        self.broken = list(_lines(folder / "broken.jsonl"))
        raw = (folder / "latency.bin").read_bytes() if (folder / "latency.bin").exists() else b""
        pairs = np.frombuffer(raw[: len(raw) // 8 * 8], np.float32).reshape(-1, 2)
        self.latency_at, self.latency_ms = pairs[:, 0], pairs[:, 1]

    @property
    def length_s(self) -> float:
        """How long it was to run."""
        return self.meta["length_s"]

    @property
    def ran_s(self) -> float:
        """How long it has run."""
        return self.samples[-1]["t"] if self.samples else 0.0

    def series(self, name: str, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and values of those samples that have it."""
        found = [(s["t"], s[name] * scale) for s in self.samples if name in s]
        return (np.array([t for t, _ in found]), np.array([v for _, v in found], float))

    def metric(self, name: str, key: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and values of a metric, of one of its labels with `key`; samples without a scrape are left out."""
        found = [(s["t"], s["metrics"][name]) for s in self.samples if s.get("metrics")]
        values = [value.get(key, 0.0) if isinstance(value, dict) and key is not None else value for _, value in found]
        return np.array([t for t, _ in found]), np.array(values)

    def log(self) -> Iterator[dict]:
        """The daemon's log, line by line."""
        path = self.folder / "daemon.log"
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except ValueError:  # an interpreter's last words
                yield {"level": "error", "event": "text", "text": line}


def _lines(path: Path) -> Iterator[dict]:
    """A file's lines; without the last one where it was cut."""
    if path.exists():
        with path.open(errors="replace") as file:
            for line in file:
                if line.endswith("}\n"):
                    yield json.loads(line)
