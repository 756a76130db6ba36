"""How the running daemon is: alive, ready, moving. Asked by HTTP, by the main loop, and so by systemd's watchdog."""

from __future__ import annotations

import time

from inspectd.changeover import Changeover
from inspectd.errors import FatalEngineError
from inspectd.station import Station
from inspectd.verdict.publisher import Publisher

ENGINE_HANG_S = 10.0
"""A batch that has been with the device for so long never comes back; READY goes long before that."""
ENGINE_LATE_S = 1.0
ZEROMQ_LATE_S = 2.0


class Health:
    """Asks the parts themselves, each time. From any thread; until `attach` the daemon is starting."""

    def __init__(self) -> None:
        self._parts: tuple[Station, Publisher, Changeover] | None = None  # set once, whole

    def attach(self, station: Station, publisher: Publisher, changeover: Changeover) -> None:
        """The daemon is complete."""
        self._parts = (station, publisher, changeover)

    def alive(self) -> tuple[bool, dict[str, str]]:
        """Alive: every thread that cannot be replaced runs."""
        if self._parts is None:
            return True, {"startup": "under way"}
        station, publisher, changeover = self._parts
        parts = {f"engine-{path.name}": lane.runner.alive for path, lane in station.lineup.lanes.items()}
        parts |= {"zeromq": publisher.alive, "changeover": changeover.alive}
        return all(parts.values()), {name: "ok" if alive else "dead" for name, alive in parts.items()}

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Ready: alive, every camera delivers judgeable frames, every engine answers in time, and it is vouched for."""
        alive, detail = self.alive()
        if self._parts is None:
            return False, detail
        station, _, changeover = self._parts
        now = time.monotonic()
        for path, lane in station.lineup.lanes.items():
            if lane.runner.busy_s(now) >= ENGINE_LATE_S:
                detail[f"engine-{path.name}"] = "late"
        for camera in station.cameras:
            detail[f"camera {camera.name}"] = "ok" if camera.state == "ready" else camera.reason or camera.state
        if problem := changeover.problem:
            detail["changeover"] = problem
        return alive and all(why == "ok" for why in detail.values()), detail

    def moving(self) -> bool:
        """Progress, not being alive: a camera that is away is no hang (its supervisor retries), an engine that does
        not give back its batch or a silent publisher is.

        Raises:
            FatalEngineError: an engine has been silent for so long that only a restart helps.
        """
        if self._parts is None:
            return True
        station, publisher, _ = self._parts
        now = time.monotonic()
        for path, lane in station.lineup.lanes.items():
            if (busy_s := lane.runner.busy_s(now)) >= ENGINE_HANG_S:
                raise FatalEngineError(f"engine for {path.name}: no answer for {busy_s:.0f} s; only a restart helps")
        return now - publisher.last_beat < ZEROMQ_LATE_S
