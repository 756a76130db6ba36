"""One part, asked for and answered: `inspectd trigger --wait`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inspectd.client.columns import render
from inspectd.client.commands import ASK_S
from inspectd.client.connection import Keys
from inspectd.client.events import Health, Received
from inspectd.client.sync import Client
from inspectd.errors import InspectdError
from inspectd.verdict.schema import Verdict, verdict_topic
from inspectd.workers import Deadline

GRACE_S = 1.0
"""Beyond the deadline, for the way of the verdict."""


def inspect_part(
    camera: str,
    part_id: str | None,
    deadline_ms: float,
    verdicts: str,
    control: str,
    keys: Keys | None,
    show: Callable[[str], object],
) -> bool:
    """Trigger, and wait for the verdict of every region; True when all of them are `pass`, and came live.

    Shows the trigger_id and each verdict as a line.

    Raises:
        InspectdError: nobody is there, the daemon refused, or a verdict did not come.
    """
    with Client(verdicts, control, topics=[f"verdict/{camera}/"], keys=keys) as client:
        _await_stream(client, verdicts)  # a verdict must not come before we listen
        waiting = _regions(client.status(), camera)
        accepted = client.trigger(camera, part_id, deadline_ms=deadline_ms)
        show(accepted.trigger_id)
        passed = bool(waiting)
        deadline = Deadline(deadline_ms / 1000 + GRACE_S)
        while waiting:
            event = client.receive(deadline.left())
            if isinstance(event, Received) and isinstance(event.message, Verdict):
                if event.message.trigger_id == accepted.trigger_id:
                    show(render(event).plain)
                    waiting.discard(event.topic)
                    passed = passed and event.live and event.message.verdict == "pass"
            elif event is None and deadline.passed:
                raise InspectdError(f"no verdict came by the deadline on {', '.join(sorted(waiting))}")
        return passed


def _await_stream(client: Client, endpoint: str) -> None:
    deadline = Deadline(ASK_S)
    while not client.alive:
        event = client.receive(deadline.left())
        if event is None and deadline.passed:
            raise InspectdError(
                f"no heartbeat from {endpoint} within {ASK_S:g} s; does the daemon run, and is this its publish.bind?"
            )
        if isinstance(event, Health) and event.reason not in (None, "connecting"):
            return  # it is there; whether it takes triggers it says itself


def _regions(status: dict[str, Any], camera: str) -> set[str]:
    """Topics on which the camera's verdicts come."""
    for each in status.get("cameras", ()):
        if each.get("name") == camera:
            return {verdict_topic(camera, roi["name"]) for roi in each.get("rois", ())}
    return set()  # the daemon refuses the trigger, and says which cameras there are
