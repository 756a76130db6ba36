"""Where the journal is required and does not take it: nothing passes, whatever else is said goes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from journal_kit import eventually
from test_verdict_publisher import FAIL, ORIGIN, PASS, Rig, Sub, roster, subscribe  # noqa: F401

from inspectd.config import PublishConfig
from inspectd.config.sections import PartConfig
from inspectd.verdict.decide import Decision
from inspectd.verdict.part_stream import RoiParts
from inspectd.verdict.publisher import Publisher
from inspectd.verdict.schema import CameraStatus, JournalState, Part, Verdict
from inspectd.verdict.teller import Roster

EMPTY = Decision("no_result", None, "empty", 0.9, {"good": 0.1, "empty": 0.9})


class Disk:
    """A journal that takes what it is given, or does not."""

    state: JournalState = "ok"

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []

    def message(self, topic: str, seq: int, body: bytes) -> None:
        self.rows.append((topic, seq))

    def late(self, body: bytes) -> None: ...

    def write_through(self, timeout_s: float) -> bool:
        return self.state == "ok"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def rig(disk: Disk) -> Iterator[Rig]:
    """A publisher that writes before it publishes; the region counts parts."""
    rig = Rig()
    start(rig, disk, required=True)
    yield rig
    rig.publisher.stop(2)


def start(rig: Rig, disk: Disk, *, required: bool) -> None:
    plain = roster(("top",))
    parts = {("top", "part"): RoiParts(PartConfig(enter_frames=1, leave_frames=1), frozenset({"empty"}))}
    rig.publisher = Publisher(
        PublishConfig(bind="tcp://127.0.0.1:*"),
        boot_id="b00t",
        roster=Roster(plain.config, plain.recipe, plain.cameras, plain.origins, parts),
        ledger=rig.ledger,
        metrics=rig.metrics,
        on_failure=rig.failures.put,
        journal=disk,
        before_publish=True,
        required=required,
    )
    rig.publisher.vouch(True)
    rig.publisher.start()


def verdicts(sub: Sub, last: int) -> list[tuple[str, str | None]]:
    got = sub.until(lambda _, m: isinstance(m, Verdict) and m.seq == last)
    return [(m.verdict, m.reason) for _, m in got if isinstance(m, Verdict)]


def test_nothing_passes(rig: Rig, disk: Disk, subscribe: Callable[..., Sub]) -> None:  # noqa: F811
    """A fail is a fail also without a record; READY goes, and passes are back with the disk."""
    sub = subscribe(rig)
    sub.next()  # a heartbeat at least: it is subscribed
    rig.publish(1, PASS)
    assert verdicts(sub, 1) == [("pass", None)]
    assert not rig.publisher.holds_passes_back
    disk.state = "failing"
    assert rig.publisher.holds_passes_back
    rig.publish(1, PASS)
    rig.publish(1, FAIL)
    assert verdicts(sub, 3) == [("no_result", "not_ready"), ("fail", None)]
    disk.state = "ok"
    rig.publish(1, PASS)
    assert verdicts(sub, 4) == [("pass", None)]
    rig.await_settled()
    assert rig.verdicts() == {("pass", ""): 2, ("no_result", "not_ready"): 1, ("fail", ""): 1}
    assert disk.rows.count(("verdict/top/part/", 2)) == 2, "the later row says what was published"


def test_where_it_is_not_required_verdicts_go_on(disk: Disk, subscribe: Callable[..., Sub]) -> None:  # noqa: F811
    """Written first as long as that can be done; a broken disk stops no line that did not ask for it."""
    rig = Rig()
    start(rig, disk, required=False)
    disk.state = "failing"
    sub = subscribe(rig)
    sub.next()
    rig.publish(1, PASS)
    assert verdicts(sub, 1) == [("pass", None)]
    assert not rig.publisher.holds_passes_back
    rig.publisher.stop(2)


def test_no_part_passes_whose_own_message_is_not_on_disk(
    rig: Rig,
    disk: Disk,
    subscribe: Callable[..., Sub],  # noqa: F811
) -> None:
    """All its frames passed and were written; then the disk fails."""
    sub = subscribe(rig)
    sub.next()  # a heartbeat at least: it is subscribed
    began = time.monotonic()
    for number, decision in enumerate((EMPTY, PASS)):
        rig.publish(1, decision, arrival=began + number / 1000, origin=ORIGIN)
    assert verdicts(sub, 2)[-1] == ("pass", None)
    disk.state = "failing"
    rig.publish(1, EMPTY)
    part = next(m for _, m in sub.until(lambda _, m: isinstance(m, Part)) if isinstance(m, Part))
    assert (part.frames.passed, part.verdict, part.reason) == (1, "no_result", "not_ready")
    eventually(lambda: rig.metrics.counted["top", "part", "no_result"] == 1)


def test_a_camera_that_goes_takes_nothing_away_that_waits_for_the_disk(
    rig: Rig,
    disk: Disk,
    subscribe: Callable[..., Sub],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last verdict is told before its fault, and the part that it belongs to is told."""
    sub = subscribe(rig)
    sub.next()  # a heartbeat at least: it is subscribed
    busy, free = threading.Event(), threading.Event()

    def slow(_: float) -> bool:
        busy.set()
        return free.wait(10)

    monkeypatch.setattr(disk, "write_through", slow)
    rig.publish(1, EMPTY)
    assert busy.wait(10)
    rig.publish(1, FAIL)
    rig.publisher.set_status("top", "fault", "ended")
    free.set()
    told = [m for _, m in sub.until(lambda _, m: isinstance(m, CameraStatus) and m.state == "fault")]
    assert [m.verdict for m in told if isinstance(m, Verdict)] == ["no_result", "fail"]
    eventually(lambda: rig.metrics.counted["top", "part", "fail"] == 1)


def test_a_part_in_view_while_nobody_vouched_does_not_pass(rig: Rig, subscribe: Callable[..., Sub]) -> None:  # noqa: F811
    """Though no frame was told in that time: all of them passed, before it or after it."""
    sub = subscribe(rig)
    sub.next()
    rig.publish(1, EMPTY)
    rig.publish(1, PASS)
    assert verdicts(sub, 2)[-1] == ("pass", None)
    rig.publisher.vouch(False)
    rig.publisher.vouch(True)
    rig.publish(1, PASS)
    rig.publish(1, EMPTY)
    rig.publish(1, PASS)
    rig.publish(1, EMPTY)
    eventually(lambda: rig.metrics.counted["top", "part", "pass"] == 1)
    assert rig.metrics.counted["top", "part", "no_result"] == 1
