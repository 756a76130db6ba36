"""docs/faults.md, made of the rows: `python tests/faults/document.py docs/faults.md [--times FOLDER]`.

What was measured is kept in measured.json; `--times` is a folder that a run of the tests left (INSPECTD_FAULT_TIMES).
"""

import argparse
import importlib
import json
import sys
from itertools import groupby
from pathlib import Path

FOLDER = Path(__file__).parent
MEASURED = FOLDER / "measured.json"

HEAD = """# Faults

What goes wrong beside a line, and what the daemon does then. Each row is a test in `tests/faults/` that injects the
fault for real; this table is made of those tests (`make faults`), so it cannot promise what is not tried. In every one
of them, beside what the row says: no part gets a wrong verdict, and every frame is accounted for
(captured + answers without a frame = verdicts + dropped + in flight).

**Detected** is the time from the fault to the first sign that somebody outside can see: a status, a heartbeat,
`/readyz`, a row in the journal, or the end of the process. **Recovered** is the time from the end of the fault to the
next judgement, or to what the row says. Both are bounds that the test asserts, with the configuration that the row
names (defaults otherwise); in brackets what was measured last on two cores of a shared server, with other tests beside.

"Kept from it by" names what in the daemon stands between the fault and a wrong PASS or silence.
"""
GROUPS = (
    "Camera and network",
    "Stream and picture",
    "Clocks",
    "Engine",
    "Consumers",
    "Disk",
    "Process",
    "Threads",
)
COLUMNS = """| Fault | How injected | What the daemon does | Detected | Recovered | Kept from it by |
|---|---|---|---|---|---|"""


def rows():
    """All rows by test, in the order of the groups and of the files."""
    for path in (FOLDER, FOLDER.parent):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    from row import ROWS

    for path in sorted(FOLDER.glob("test_*.py")):
        importlib.import_module(path.stem)
    found = sorted(ROWS.items(), key=lambda item: GROUPS.index(item[1].group))
    return [(test, row) for test, row in found if not test.startswith("__main__")]


def time_cell(bound, measured):
    """`≤ 2 s (0.7)`, or a dash where nothing is promised."""
    if bound is None:
        return "–"
    return f"≤ {bound:g} s" + (f" ({measured:.1f})" if measured is not None else "")


def document(measured):
    """The whole page as text."""
    parts = [HEAD]
    for group, members in groupby(rows(), key=lambda item: item[1].group):
        parts.append(f"\n## {group}\n\n{COLUMNS}")
        for test, row in members:
            times = measured.get(test, {})
            what = row.does + (f" *({row.settings})*" if row.settings else "")
            cells = (
                row.fault,
                row.injected,
                what,
                time_cell(row.detect_s, times.get("detect_s")),
                time_cell(row.recover_s, times.get("recover_s")),
                row.protection,
            )
            parts.append("\n| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n")
    return "".join(parts)


def gathered(folder):
    """The times of a run; of a test with several cases the longest."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        case = json.loads(path.read_text())
        times = found.setdefault(case.pop("test"), {})
        for name, seconds in case.items():
            times[name] = max(seconds, times.get(name, 0))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--times", type=Path, help="folder of measured times to take over")
    given = parser.parse_args()
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    if given.times:
        known = {test for test, _ in rows()}
        measured = {test: times for test, times in (measured | gathered(given.times)).items() if test in known}
        MEASURED.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    given.page.write_text(document(measured))


if __name__ == "__main__":
    main()
