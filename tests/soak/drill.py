"""Goes through the schedule: injects each fault at its time, and stamps when it was seen and when it was over."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from schedule import Planned
from torment import Line, Torment
from torments import BY_NAME
from watcher import Promise, Watcher

GRACE_S = 3.0
"""A busy machine may be so much later than promised before a promise counts as broken."""


@dataclass
class Record:
    """One fault as it went; seconds from the start of the soak, None where nothing was seen (yet)."""

    number: int
    kind: str
    group: str
    began: float
    over: float | None = None
    detected: float | None = None
    recovered: float | None = None
    remark: str = ""

    @property
    def detect_s(self) -> float | None:
        return None if self.detected is None else self.detected - self.began

    @property
    def recover_s(self) -> float | None:
        return None if self.recovered is None or self.over is None else max(0.0, self.recovered - self.over)


@dataclass
class _Open:
    """A fault that has ended and is not over yet."""

    torment: Torment
    record: Record
    sign: Promise | None
    cure: Promise
    give_up_at: float


class Drill:
    """`run` goes through the plan. `keep(record)` is called for each fault whenever something of it has changed."""

    def __init__(
        self,
        line: Line,
        watcher: Watcher,
        began: float,
        keep: Callable[[dict], None],
        broken: Callable[[str, str], None],
    ) -> None:
        self._line = line
        self._watcher = watcher
        self._began = began
        self._keep = keep
        self._broken = broken
        self._open: list[_Open] = []
        self.now_on: str | None = None

    def run(self, plan: list[Planned], until_s: float, stop: threading.Event) -> None:
        """Everything of the plan, and then the rest of the time until `until_s`; less when `stop` is set."""
        for planned in plan:
            if self._wait(planned.at_s, stop):
                break
            self._close_all(forced=True)
            self._inject(planned, stop)
        self._wait(until_s, stop)
        self._close_all(forced=True)

    def _inject(self, planned: Planned, stop: threading.Event) -> None:
        torment = BY_NAME[planned.kind](self._line, planned.seed)
        record = Record(planned.number, planned.kind, torment.group, began=self._time())
        sign = None if torment.detect_s is None else self._watcher.expect(torment.sign)
        self.now_on = planned.kind
        self._keep(asdict(record))
        with self._reported(planned.kind):
            torment.begin()
            self._wait(record.began + planned.lasts_s, stop)
        with self._reported(planned.kind):
            torment.end()
        self.now_on = None
        record.over, record.remark = self._time(), torment.remark
        if "unexpected" in torment.remark:
            self._broken("commands do what they should", f"{planned.kind}: {torment.remark}")
        cure = self._watcher.expect(torment.cure)
        give_up_at = time.monotonic() + (torment.recover_s or 0) + GRACE_S
        self._open.append(_Open(torment, record, sign, cure, give_up_at))
        self._keep(asdict(record))

    def _close_all(self, *, forced: bool = False) -> None:
        """Settle those that are over, and those whose time is over."""
        for one in list(self._open):
            late = time.monotonic() > one.give_up_at
            if one.cure.at is None and not late and not forced:
                continue
            self._open.remove(one)
            self._settle(one)

    def _settle(self, one: _Open) -> None:
        record, torment = one.record, one.torment
        for promise in (one.sign, one.cure):
            if promise is not None:
                self._watcher.forget(promise)
        if one.sign is not None:
            record.detected = None if one.sign.at is None else one.sign.at - self._began
        record.recovered = None if one.cure.at is None else one.cure.at - self._began
        if torment.detect_s is not None and (record.detect_s is None or record.detect_s > torment.detect_s + GRACE_S):
            self._broken("every fault is seen in time", f"{record.kind}, {record.began:.0f} s: {record.detect_s} s")
        if torment.recover_s is not None and record.recover_s is None:
            self._broken("every fault is over in time", f"{record.kind}, {record.began:.0f} s: not recovered")
        with self._reported(record.kind):
            torment.settled()
        self._keep(asdict(record))

    @contextmanager
    def _reported(self, kind: str) -> Iterator[None]:
        """What goes wrong in here is a fault of ours: the soak says so and goes on with the others."""
        try:
            yield
        except Exception as err:
            self._broken("the soak itself works", f"{kind}: {err!r}")

    def _wait(self, until_s: float, stop: threading.Event) -> bool:
        """Until that time of the soak; True when it is to stop."""
        while (left := until_s - self._time()) > 0:
            if stop.wait(min(left, 0.1)):
                return True
            self._close_all()
        return stop.is_set()

    def _time(self) -> float:
        return time.monotonic() - self._began
