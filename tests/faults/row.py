"""One row of the fault table: what is injected, what the daemon does, and how soon. docs/faults.md is made of these."""

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

# Which row belongs to which test; filled as the test files of this folder are imported.
ROWS: dict[str, "Row"] = {}


@dataclass(frozen=True)
class Row:
    """What the table says of one fault. Times are bounds in seconds that the row's test asserts; None: nothing to see.

    `detect_s`: from the injection to the first outward sign (a status, a heartbeat, /readyz, a journal row, an exit).
    `recover_s`: from the end of the fault to the next judgement (pass or fail) or whatever `does` promises.
    `settings`: the configuration keys on which these bounds rest, when they are not the defaults.
    `protection`: what in the daemon stands between this fault and a wrong PASS or silence; without it the test fails.
    """

    group: str
    fault: str
    injected: str
    does: str
    protection: str
    detect_s: float | None = None
    recover_s: float | None = None
    settings: str = ""


def fault(group, fault, *, injected, does, protection, detect_s=None, recover_s=None, settings=""):
    """Mark a test as the row of that fault; it takes the fixture `watch` and must stamp what the row promises."""

    def decorate(test):
        row = Row(group, fault, injected, does, protection, detect_s, recover_s, settings)
        known = ROWS.setdefault(f"{test.__module__}::{test.__name__}", row)
        assert known == row, f"two rows for {test.__name__}"
        test.fault_row = row
        return test

    return decorate


@dataclass
class Watch:
    """The stop-watch of a row: `injected`, `detected`, `over`, `recovered`, each stamped once, in this order."""

    row: Row
    stamps: dict[str, float] = field(default_factory=dict)

    def _stamp(self, name):
        assert name not in self.stamps, f"{name} twice"
        self.stamps[name] = time.monotonic()

    def injected(self):
        """The fault begins now."""
        self._stamp("injected")

    def detected(self):
        """Somebody outside can see it now; within the row's `detect_s`."""
        self._stamp("detected")
        took = self.took("injected", "detected")
        assert took <= self.row.detect_s, f"detected after {took:.2f} s, promised {self.row.detect_s} s"

    def over(self):
        """The fault ends now."""
        self._stamp("over")

    def recovered(self):
        """Back at work, within the row's `recover_s` from `over` (from the injection where nothing ends it)."""
        self._stamp("recovered")
        took = self.took("over" if "over" in self.stamps else "injected", "recovered")
        assert took <= self.row.recover_s, f"recovered after {took:.2f} s, promised {self.row.recover_s} s"

    def took(self, begin, end):
        """Seconds between two stamps."""
        return self.stamps[end] - self.stamps[begin]

    def complete(self):
        """Whatever the row promises was measured."""
        assert "injected" in self.stamps, "the fault was never injected"
        assert self.row.detect_s is None or "detected" in self.stamps, "the row promises detect_s; nothing was detected"
        assert self.row.recover_s is None or "recovered" in self.stamps, "the row promises recover_s; nothing recovered"

    def measured(self):
        """`{"detect_s": ..., "recover_s": ...}`, what there is of it."""
        times = {}
        if "detected" in self.stamps:
            times["detect_s"] = round(self.took("injected", "detected"), 2)
        if "recovered" in self.stamps:
            times["recover_s"] = round(self.took("over" if "over" in self.stamps else "injected", "recovered"), 2)
        return times


def keep(test, case, watch):
    """Leave what was measured in the folder INSPECTD_FAULT_TIMES, a file per test and case, for docs/faults.md."""
    if folder := os.environ.get("INSPECTD_FAULT_TIMES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "_", f"{test}.{case}")
        Path(folder, f"{name}.json").write_text(json.dumps({"test": test, **watch.measured()}))
