"""How the running daemon is: alive, ready, moving. Asked by HTTP, by the main loop, and so by systemd's watchdog.

A thread that died or hangs is found here, whichever it is: every thread that cannot be replaced gives a sign of life
on each of its turns (`Worker.beat`). Once one is overdue READY goes and the watchdog is no longer fed; when the thread
does not come back the process ends: only a new one helps. Capture threads are replaced by their camera.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from inspectd.changeover import Changeover
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
        station, _, _, workers = self._parts
        engines = (lane.runner.worker for lane in station.lineup.lanes.values())
        watched = [*engines, *workers]
        detail = dict.fromkeys((worker.name for worker in watched), "ok")  # two bundles may have the same name
        detail |= {worker.name: "dead" for worker in watched if not worker.alive}
        detail["main"] = "ok" if time.monotonic() - self._turned_at < HANG_S else "late"
        return all(why == "ok" for why in detail.values()), detail

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Ready: alive and moving, every camera delivers judgeable frames, it is vouched for, and what must be on disk
        before it is published is."""
        alive, detail = self.alive()
        if self._parts is None:
            return False, detail
        station, publisher, changeover, _ = self._parts
        now = time.monotonic()
        for name in self._late(now):
            if detail[name] == "ok":
                detail[name] = "late"
        for lane in station.lineup.lanes.values():
            if lane.runner.failing(now):
                detail[lane.runner.worker.name] = "failing"
        if now - self._turned_at >= LATE_S:
            detail["main"] = "late"
        for camera in station.cameras:
            detail[f"camera {camera.name}"] = "ok" if camera.state == "ready" else camera.reason or camera.state
        if problem := changeover.problem:
            detail["changeover"] = problem
        if publisher.holds_passes_back:
            detail["journal"] = "failing"
        return alive and all(why == "ok" for why in detail.values()), detail

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
        late = self._late(now)
        self._hanging_s = {name: self._hanging_s.get(name, 0.0) + passed_s for name in late}
        for name, hanging_s in self._hanging_s.items():
            if hanging_s >= HANG_S:
                kind = FatalEngineError if name.startswith("engine-") else InspectdError
                raise kind(f"thread {name}: no sign of life for {hanging_s + LATE_S:.0f} s; only a restart helps")
        if dead := [name for name, why in self.alive()[1].items() if why == "dead"]:
            raise InspectdError(f"thread {dead[0]}: it has ended; only a restart helps")
        return not late

    def _late(self, now: float) -> list[str]:
        """Threads whose sign of life is overdue."""
        assert self._parts is not None
        station, _, _, workers = self._parts
        runners = (lane.runner for lane in station.lineup.lanes.values())
        late = [runner.worker.name for runner in runners if runner.late_s(now)]
        return late + [worker.name for worker in workers if worker.late_s(now)]
