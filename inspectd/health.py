"""How the running daemon is: alive, ready, moving. Asked by HTTP, by the main loop, and so by systemd's watchdog.

A thread that died or hangs is found here, whichever it is: every thread that cannot be replaced gives a sign of life
on each of its turns (`Worker.beat`). Once one is overdue READY goes and the watchdog is no longer fed; when the thread
does not come back the process ends: only a new one helps. Capture threads are replaced by their camera.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from inspectd.changeover import Changeover
from inspectd.engine.runner import EngineRunner
from inspectd.errors import FatalEngineError, InspectdError
from inspectd.station import Station
from inspectd.verdict.publisher import Publisher
from inspectd.workers import HANG_S, LATE_S, Worker

BLIND_S = 1.0
"""Between two turns of the main loop so much counts at most: while this process is stopped, nobody in it is late."""


class Health:
    """Asks the parts themselves, each time. From any thread; until `attach` the daemon is starting."""

    def __init__(self) -> None:
        self._parts: tuple[Station, Publisher, Changeover, Sequence[Worker]] | None = None  # set once, whole
        self._turned_at = 0.0  # of the main loop's last turn; monotonic seconds, written by the main thread
        self._hanging_s: dict[str, float] = {}  # for how long each late thread was seen to be; the main thread's

    def attach(self, station: Station, publisher: Publisher, changeover: Changeover, others: Sequence[Worker]) -> None:
        """The daemon is complete. `others` are threads that it cannot do without either."""
        self._turned_at = time.monotonic()
        self._parts = (station, publisher, changeover, (*publisher.workers, changeover.worker, *others))

    def alive(self) -> tuple[bool, dict[str, str]]:
        """Alive: every thread that cannot be replaced runs."""
        if self._parts is None:
            return True, {"startup": "under way"}
        _, detail = self._look()
        return all(why == "ok" for why in detail.values()), detail

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Ready: alive and moving, every camera delivers judgeable frames, it is vouched for, and what must be on disk
        before it is published is."""
        if self._parts is None:
            return False, self.alive()[1]
        station, publisher, changeover, workers = self._parts
        runners, detail = self._look()
        now = time.monotonic()
        for name in _late([*runners, *station.left_behind], workers, now):
            if detail.get(name, "ok") == "ok":
                detail[name] = "late"
        for runner in runners:
            if runner.failing(now):
                detail[runner.worker.name] = "failing"
        if now - self._turned_at >= LATE_S:
            detail["main"] = "late"
        for camera in station.cameras:
            detail[f"camera {camera.name}"] = "ok" if camera.state == "ready" else camera.reason or camera.state
        if problem := changeover.problem:
            detail["changeover"] = problem
        if publisher.holds_passes_back:
            detail["journal"] = "failing"
        return all(why == "ok" for why in detail.values()), detail

    def moving(self) -> bool:
        """Whether every thread makes progress. The main loop asks on each of its turns, which shows that it does.

        Progress, not being alive: a camera that is away is no hang (its supervisor retries), an engine that does not
        give back its batch or a silent publisher is.

        Raises:
            FatalEngineError: an engine has been silent for so long that only a restart helps.
            InspectdError: another thread has, or has ended.
        """
        if self._parts is None:
            return True
        now = time.monotonic()
        passed_s, self._turned_at = min(now - self._turned_at, BLIND_S), now
        runners, detail = self._look()
        # An engine that was left and hangs keeps frames without an answer: that too only a restart mends.
        late = _late([*runners, *self._parts[0].left_behind], self._parts[3], now)
        self._hanging_s = {name: self._hanging_s.get(name, 0.0) + passed_s for name in late}
        for name, hanging_s in self._hanging_s.items():
            if hanging_s >= HANG_S:
                kind = FatalEngineError if name.startswith("engine-") else InspectdError
                raise kind(f"thread {name}: no sign of life for {hanging_s + LATE_S:.0f} s; only a restart helps")
        if dead := [name for name, why in detail.items() if why == "dead"]:
            raise InspectdError(f"thread {dead[0]}: it has ended; only a restart helps")
        return not late

    def _look(self) -> tuple[list[EngineRunner], dict[str, str]]:
        """The engines at work, and which of all threads run. Of one line-up: another may take its place at any time."""
        assert self._parts is not None
        station, _, _, workers = self._parts
        while True:
            lineup = station.lineup
            runners = [lane.runner for lane in lineup.lanes.values()]
            watched = [*(runner.worker for runner in runners), *workers]
            detail = dict.fromkeys((worker.name for worker in watched), "ok")  # two bundles may have the same name
            detail |= {worker.name: "dead" for worker in watched if not worker.alive}
            if station.lineup is lineup:  # else the engines that have ended are those that were left
                break
        detail["main"] = "ok" if time.monotonic() - self._turned_at < HANG_S else "late"
        return runners, detail


def _late(runners: Sequence[EngineRunner], workers: Sequence[Worker], now: float) -> list[str]:
    """Threads whose sign of life is overdue."""
    late = [runner.worker.name for runner in runners if runner.late_s(now)]
    return late + [worker.name for worker in workers if worker.late_s(now)]
