"""Who is late, who is given up, and who only seems to be: `Health` over real threads and a clock of the test's."""

from types import SimpleNamespace

import pytest

from inspectd import health, workers
from inspectd.errors import InspectdError
from inspectd.health import Health
from inspectd.workers import HANG_S, LATE_S, Worker

TICK_S = 0.1  # of the main loop


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    monkeypatch.setattr(workers, "time", clock)
    return clock


@pytest.fixture
def worker():
    """A thread that runs and does nothing by itself; the test beats in its place."""
    worker = Worker("patient", lambda stop: stop.wait())
    worker.start()
    yield worker
    worker.stop(5)


@pytest.fixture
def daemon(clock, worker):
    """The health of a daemon that has this thread beside its own, all of which are well."""
    idle = Worker("idle", lambda stop: stop.wait())
    idle.start()
    made = Health()
    made.attach(
        SimpleNamespace(lineup=SimpleNamespace(lanes={}), cameras=[], left_behind=[]),
        SimpleNamespace(workers=(idle,), holds_passes_back=False),
        SimpleNamespace(worker=idle, problem=None),
        [worker],
    )
    yield made
    idle.stop(5)


def turns(daemon, clock, seconds):
    """What the main loop is told on its turns for so long."""
    told = []
    for _ in range(round(seconds / TICK_S)):
        clock.now += TICK_S
        told.append(daemon.moving())
    return told


def test_a_thread_that_beats_is_never_late(daemon, clock, worker):
    """Sign after sign, each in time."""
    for _ in range(100):
        worker.beat()
        assert all(turns(daemon, clock, LATE_S * 0.9))
    assert daemon.ready() == (True, {"patient": "ok", "idle": "ok", "main": "ok"})


def test_a_thread_without_a_sign_is_late_and_then_given_up(daemon, clock, worker):
    """READY goes after a second, the process ends after nine."""
    worker.beat()
    assert all(turns(daemon, clock, LATE_S - TICK_S))
    assert not any(turns(daemon, clock, HANG_S - 2 * TICK_S)[1:])
    assert daemon.ready() == (False, {"patient": "late", "idle": "ok", "main": "ok"})
    with pytest.raises(InspectdError, match="thread patient: no sign of life for 9 s; only a restart helps"):
        turns(daemon, clock, 5 * TICK_S)


def test_a_thread_may_say_that_it_will_be_long(daemon, clock, worker):
    """Compiling a model takes what it takes."""
    worker.beat(60)
    assert all(turns(daemon, clock, 59))
    worker.beat()
    assert all(turns(daemon, clock, 0.5))


def test_nobody_is_given_up_for_a_time_in_which_the_process_stood_still(daemon, clock, worker):
    """Stopped for a minute: everybody is late at first, and has time to come back."""
    worker.beat()
    clock.now += 60
    assert not daemon.moving()
    assert not any(turns(daemon, clock, HANG_S - 2 * LATE_S))
    worker.beat()
    assert daemon.moving()


def test_a_main_loop_that_does_not_turn_is_not_ready_and_then_not_alive(daemon, clock):
    """It is the main loop's turns that say so; the first second is everybody's."""
    assert daemon.moving()
    clock.now += LATE_S
    assert daemon.alive()[0]
    assert daemon.ready() == (False, {"patient": "ok", "idle": "ok", "main": "late"})
    clock.now += HANG_S
    assert daemon.alive() == (False, {"patient": "ok", "idle": "ok", "main": "late"})


def test_a_thread_that_ended_is_dead_and_the_end(daemon, worker):
    """However it ended: by an exception, or by itself."""
    worker.stop(5)
    assert daemon.ready()[1]["patient"] == "dead"
    assert not daemon.alive()[0]
    with pytest.raises(InspectdError, match="thread patient: it has ended"):
        daemon.moving()


def engine(name, *, alive=True, late_s=0.0):
    worker = SimpleNamespace(name=name, alive=alive)
    return SimpleNamespace(runner=SimpleNamespace(worker=worker, late_s=lambda now: late_s, failing=lambda now: False))


class Exchanging:
    """A station that puts the second line-up in the place of the first at the very moment at which it is looked at."""

    def __init__(self, *lanes):
        self.cameras = self.left_behind = []
        self._lineups = [SimpleNamespace(lanes={"a": lane}) for lane in lanes]

    @property
    def lineup(self):
        return self._lineups.pop(0) if len(self._lineups) > 1 else self._lineups[0]


def test_an_exchange_of_line_ups_is_no_fault(daemon):
    """The old engine has ended, as it should; and what is said of the new one is said of that alone."""
    left = engine("engine-old", alive=False, late_s=5.0)
    _, *others = daemon._parts
    for new, why in ((engine("engine-new"), "ok"), (engine("engine-new", late_s=1.0), "late")):
        daemon._parts = (Exchanging(left, new), *others)
        assert daemon.moving() is (why == "ok")
        daemon._parts = (Exchanging(left, new), *others)
        assert daemon.ready() == (why == "ok", {"engine-new": why, "patient": "ok", "idle": "ok", "main": "ok"})


def test_until_the_daemon_is_complete_it_is_alive_and_not_ready():
    """Starting is no fault."""
    starting = Health()
    assert starting.alive() == (True, {"startup": "under way"})
    assert not starting.ready()[0]
    assert starting.moving()


def test_a_worker_that_was_not_started_is_not_late():
    """Nor one that has not turned yet."""
    assert Worker("new", lambda stop: None).late_s(1e9) == 0
