"""Coverage-guided fuzzing of what reads data from outside: `make fuzz`, or

    python tests/hostile/fuzz.py [--seconds N] [--seed N] [--keep FOLDER] [TARGET...]

Each target runs in a process of its own for so long. What it finds is written to FOLDER (a new one, if none is named),
the traceback is printed, and the exit code is 1. The corpus stays there too: the next run with `--keep` goes on there.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RSS_MB = 2048
TIMEOUT_S = 10
MAX_BYTES = {"configuration": 8000, "manifest": 8000, "control": 2000, "journal": 600, "h264": 1000, "weights": 4000}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what reads data from outside.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("targets", nargs="*", default=list(MAX_BYTES))
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="inspectd-fuzz-"))
    failed = [name for name in given.targets if not _fuzz(name, folder / name, given.seconds, given.seed)]
    print(f"found nothing: {', '.join(given.targets)}" if not failed else f"FOUND in {', '.join(failed)}: see {folder}")
    return 1 if failed else 0


def _fuzz(name: str, folder: Path, seconds: int, seed: int) -> bool:
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    environ = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, __file__, "--child", name, str(folder)),
        *(f"-max_total_time={seconds}", f"-seed={seed}", f"-rss_limit_mb={RSS_MB}", f"-timeout={TIMEOUT_S}"),
        *(f"-artifact_prefix={folder}/found-", f"-max_len={MAX_BYTES[name]}", "-print_final_stats=1"),
        *("-verbosity=1", f"-dict={folder}/words", str(folder / "corpus")),
    ]
    print(f"-- {name}", flush=True)
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace")
    lines = (ended.stdout + ended.stderr).splitlines()
    found_nothing = ended.returncode == 0
    told = [line for line in lines if line.startswith(("stat::number_of_executed", "stat::peak")) or " DONE " in line]
    from_error = next((at for at, line in enumerate(lines) if "Uncaught" in line), max(0, len(lines) - 40))
    uninteresting = ("INFO", "WARNING", "#", "0x", "\\")
    shown = told if found_nothing else [line for line in lines[from_error:] if not line.startswith(uninteresting)]
    print("\n".join(shown), flush=True)
    return found_nothing


def _child(name: str, folder: Path, arguments: list[str]) -> None:
    import atheris
    import structlog

    with atheris.instrument_imports(include=["inspectd", "tomllib"]):
        from hostile.targets import TARGETS
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    target = TARGETS[name](folder)
    for number, seed in enumerate(target.seeds):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    words = [word.replace("\\", "\\\\").replace('"', '\\"') for word in target.words if word]
    printable = [word for word in words if word.isascii() and word.isprintable()]
    (folder / "words").write_text("".join(f'"{word}"\n' for word in [*printable, "\\x00\\x00\\x01"]))
    atheris.Setup([sys.argv[0], *arguments], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are `hostile.NAME`
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
