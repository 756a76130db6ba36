"""What the control socket can ask beyond triggers: the state of everything, replays, and changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inspectd import __version__
from inspectd.changeover import Changeover
from inspectd.station import Station
from inspectd.verdict.control_schema import ControlError, ReplayRequest, Request
from inspectd.verdict.journal import Journal, ReplayDesk
from inspectd.verdict.publisher import Answer
from inspectd.verdict.schema import State


class LineCommands:
    """Asked in the thread "zeromq"; nothing here waits. Until `attach` most of it is not there yet."""

    def __init__(self, boot_id: str, replay: ReplayDesk | None, journal: Journal | None) -> None:
        self._boot_id = boot_id
        self._replay = replay
        self._journal = journal
        self._attached: tuple[Station, Changeover, Callable[[], tuple[State, str | None]]] | None = (
            None  # swapped whole
        )

    def attach(self, station: Station, changeover: Changeover, state: Callable[[], tuple[State, str | None]]) -> None:
        """The daemon is complete."""
        self._attached = (station, changeover, state)

    def status(self, pending_triggers: Callable[[str], int]) -> Mapping[str, Any]:
        """The result of `status`."""
        journal = {"state": "off", "why": None}
        if self._journal is not None:
            journal = {"state": self._journal.state, "why": self._journal.why}
        common = {"boot_id": self._boot_id, "version": __version__, "journal": journal}
        if self._attached is None:
            return {**common, "state": "starting", "reason": None, "cameras": [], "models": [], "challenge": None}
        station, changeover, state_of = self._attached
        state, reason = state_of()
        lineup = station.lineup
        challenge = changeover.challenge
        return {
            **common,
            "state": state,
            "reason": reason,
            "recipe": lineup.recipe,
            "recipes": list(lineup.settings.recipes),
            "config": lineup.config,
            "cameras": [
                {
                    "name": camera.name,
                    "state": camera.state,
                    "reason": camera.reason,
                    "trigger": (config := lineup.camera(camera.name)).trigger,
                    "pending_triggers": pending_triggers(camera.name),
                    "rois": [{"name": roi.name, "model": lineup.lane(roi).bundle.short_hash} for roi in config.rois],
                }
                for camera in station.cameras
            ],
            "models": [
                {
                    "model": lane.bundle.short_hash,
                    "engine": lane.engine.info.name,
                    "precision": lane.engine.info.precision,
                }
                for lane in lineup.lanes.values()
            ],
            "challenge": None if challenge is None else challenge.model_dump(),
        }

    def replay(self, request: ReplayRequest, answer: Answer) -> None:
        """Have it looked up.

        Raises:
            ControlError: it cannot be.
        """
        if self._replay is None:
            raise ControlError("no_journal", "nothing is journaled: set journal.path")
        self._replay.replay(request, answer)

    def command(self, request: Request, answer: Answer) -> None:
        """Have it done.

        Raises:
            ControlError: not now.
        """
        if self._attached is None:
            raise ControlError("busy", "the daemon is still starting")
        self._attached[1].command(request, answer)
