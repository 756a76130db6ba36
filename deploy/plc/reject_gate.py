"""Glue between inspectd and a reject gate, to be copied: fill in `set_gate` and `part_in_position`. Arguments: the
daemon's publish.bind and control.bind, the camera, its regions (tcp://127.0.0.1:5556 tcp://127.0.0.1:5557 line1 lid).
The gate is shut unless this very part has passed in every region, in time, live, and all is well at that moment. A
program that was killed shuts nothing: take an output with a watchdog, or a gate that needs a pulse for each part.
"""

import sys
import threading
import time

from inspectd.client import Client, ControlRefused, ControlTimeout, Received, Verdict

DEADLINE_MS = 500


def set_gate(*, is_open: bool) -> None:
    """FILL IN: drive the output. Open lets the part pass, shut rejects it. Must not wait."""
    print("gate open" if is_open else "gate shut", flush=True)


def part_in_position() -> str | None:
    """FILL IN: wait for the light barrier, return a new part id; None ends. Here: a line of input is a part."""
    return sys.stdin.readline().strip() or None


def passed(client: Client, camera: str, regions: set[str], part_id: str) -> bool:
    """Trigger, and wait for one live pass of every region."""
    missing, until = regions, time.monotonic() + 0.25 + DEADLINE_MS / 1000
    try:
        trigger = client.trigger(camera, part_id, deadline_ms=DEADLINE_MS, timeout_s=DEADLINE_MS / 1000)
    except (ControlRefused, ControlTimeout) as err:
        print(f"{part_id}: {err}", file=sys.stderr)
        return False
    while missing and (event := client.receive(max(0.0, until - time.monotonic()))) is not None:
        verdict = event.message if isinstance(event, Received) and event.live else None
        if isinstance(verdict, Verdict) and verdict.trigger_id == trigger.trigger_id:
            if verdict.verdict != "pass":
                return False
            missing = missing - {verdict.roi}
    return not missing


def main(verdicts: str, control: str, camera: str, region: str, *regions: str) -> None:
    turn = threading.Lock()  # fail_safe comes from the client's own thread, whatever this one does

    def drive(*, is_open: bool) -> None:
        with turn:
            set_gate(is_open=is_open and client.safe_to_run)

    def fail_safe(reason: str | None) -> None:  # None, all is well again, opens nothing either
        drive(is_open=False)

    with Client(verdicts, control, topics=(f"verdict/{camera}/",), fail_safe=fail_safe, replay=False) as client:
        for part_id in iter(part_in_position, None):
            drive(is_open=False)
            drive(is_open=passed(client, camera, {region, *regions}, part_id))


if __name__ == "__main__":
    main(*sys.argv[1:])
