"""Cases run in child processes that may neither crash, hang nor eat the memory: what a case does is its own problem.

A suite is a module `hostile.NAME` with `prepare(folder) -> run`, and `run(seed) -> dict` is one case: it returns what
came out, in plain JSON, or raises. One child runs many cases; where it dies, the case that it was at is to blame, and
another child goes on behind it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
MEMORY_BYTES = 1 << 30
"""What one child may map beyond what it had when it was ready."""
CASE_S = 10.0
"""A case that takes longer hangs. Most take 20 ms."""

Run = Callable[[int], dict[str, Any]]


def caged(suite: str, seeds: Iterable[int], folder: Path) -> list[dict[str, Any]]:
    """Run a suite's cases. Each result has its `seed` and `end`: `done`, `raised`, `hung`, `died` or `memory`.

    What was returned stands beside it; `what` is the traceback or how the child died. `grown` are the bytes of
    resident memory that the child's peak has risen by since it was ready.
    """
    left = list(seeds)
    results: list[dict[str, Any]] = []
    while left:
        done = _one_child(suite, left, folder)
        assert done, "the child did not even begin"
        results += done
        left = left[len(done) :]
    return results


def _one_child(suite: str, seeds: list[int], folder: Path) -> list[dict[str, Any]]:
    environ = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    with tempfile.TemporaryFile("w+") as noise:
        child = subprocess.Popen(
            [sys.executable, __file__, suite, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env=environ,
        )
        out, _ = child.communicate("\n".join(map(str, seeds)))
        results = [json.loads(line) for line in out.splitlines()]
        if len(results) < len(seeds):
            hung = child.returncode == -signal.SIGALRM
            noise.seek(0)
            how = f"exit code {child.returncode}; {noise.read()[-600:]}"
            assert results or child.returncode < 0, how  # `prepare` failed: not a finding, a broken suite
            results.append({"seed": seeds[len(results)], "end": "hung" if hung else "died", "what": how})
    return results


# -- in the child ---------------------------------------------------------------------------------------


def main(suite: str, folder: Path) -> None:
    seeds = [int(line) for line in sys.stdin.read().split()]
    run: Run = import_module(f"hostile.{suite}").prepare(folder)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no result
    bounded = _mapped_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bounded, bounded))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ready = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        result = _result(run, seed)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - ready) * 1024
        print(json.dumps({"seed": seed, "grown": grown, **result}), file=results, flush=True)


def _result(run: Run, seed: int) -> dict[str, Any]:
    try:
        with _at_most(CASE_S):
            return {"end": "done", **run(seed)}
    except MemoryError:
        return {"end": "memory", "what": traceback.format_exc()[-600:]}
    except BaseException:
        return {"end": "raised", "what": traceback.format_exc()[-1200:]}


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """SIGALRM has no handler, so it ends also what is stuck inside a library."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are `hostile.NAME`
    main(sys.argv[1], Path(sys.argv[2]))
