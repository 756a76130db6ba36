"""How one line-up takes another's place."""

from faulty_camera import FaultyCamera
from line import Line, running_daemon
from test_line_changes import folder, made  # noqa: F401


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
