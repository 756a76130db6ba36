"""How one line-up takes another's place."""

import threading

from faulty_camera import FaultyCamera
from journal_kit import eventually
from line import Line, running_daemon
from test_line_changes import folder, made  # noqa: F401

from inspectd.engine.openvino import OpenVinoEngine


def test_a_region_is_in_the_books_before_the_publisher_may_answer_for_it(folder, monkeypatch):  # noqa: F811
    """Else a trigger that comes in between would be accepted and never answered, for its ticket could not be had."""
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=50)) as daemon, Line(daemon) as line:
        line.state("ready")
        use, unknown = daemon.publisher.use, []

        def watched(roster):
            booked = {(account.camera, account.roi) for account in daemon.ledger.snapshot()}
            regions = {(camera, roi) for camera, rois in roster.origins.items() for roi in rois}
            unknown.append(regions - booked)
            use(roster)

        monkeypatch.setattr(daemon.publisher, "use", watched)
        assert line.ask("recipe", name="lid")["ok"]
    assert unknown == [set()]


def test_an_engine_that_hangs_is_no_better_for_having_been_left(folder, monkeypatch):  # noqa: F811
    """Frames wait for it without an answer: READY goes, and unless it comes to its end the process does."""
    hangs, goes_on, hanging = threading.Event(), threading.Event(), []
    collect = OpenVinoEngine.collect

    def stuck(engine):
        if hangs.is_set() and hanging in ([], [engine]):
            hanging[:] = [engine]
            goes_on.wait(60)
        return collect(engine)

    monkeypatch.setattr(OpenVinoEngine, "collect", stuck)
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=50)) as daemon, Line(daemon) as line:
        line.state("ready")
        hangs.set()
        eventually(lambda: hanging)
        assert line.ask("recipe", name="lid")["ok"]
        assert daemon.station.left_behind
        eventually(lambda: daemon.health.ready()[1].get("engine-bundle") == "late")
        assert not daemon.health.moving()
        goes_on.set()
        eventually(lambda: daemon.health.ready()[0])
        assert not daemon.station.left_behind
        assert all(account.balanced for account in daemon.ledger.snapshot())
