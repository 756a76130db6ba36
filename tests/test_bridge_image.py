"""What a PLC may act on: a result is shown only while everything speaks for it. No sockets, no clock."""

from datetime import UTC, datetime

import pytest
from bridge_loop import LAYOUT
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples

from inspectd.bridge import codes
from inspectd.bridge.image import LineImage
from inspectd.client.transit import Transit
from inspectd.verdict.schema import CameraStatus, Heartbeat, Latency, Part, Verdict

HOLD_MS = 1000
EPOCH = 1_800_000_000.0  # the daemon's wall clock when the bridge's monotonic clock says 0


def stamp(at):
    return datetime.fromtimestamp(EPOCH + at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def heartbeat(at, state="ready", boot="b1", topics=None):
    return Heartbeat(boot_id=boot, seq=1, state=state, reason=None, topics=topics or {}, published_at=stamp(at))


def verdict(at, seq=1, kind="pass", *, roi="part", boot="b1", **changes):
    fields = {
        "boot_id": boot, "seq": seq, "camera": "top", "roi": roi, "verdict": kind,
        "reason": "uncertain" if kind == "no_result" else None,
        "label": None if kind == "no_result" else "good", "score": None if kind == "no_result" else 0.9,
        "frame": None, "captured_at": None, "published_at": stamp(at),
        "latency_ms": Latency(decode=0, queue=0, engine=0, total=0), "model": "m", "config": "c",
    }  # fmt: skip
    return Verdict(**(fields | changes))


def part(at, seq=1):
    return Part.model_validate(
        {
            "boot_id": "b1", "seq": seq, "camera": "side", "roi": "edge", "verdict": "pass", "label": "good",
            "score": 0.9, "vote": "any_defect", "frames": {"total": 1, "passed": 1, "failed": 0, "uncertain": 0,
            "unseen": 0}, "first_index": 0, "last_index": 0, "first_at": None, "last_at": None, "decisive": {"seq": 1,
            "index": 0, "pts": None, "captured_at": None, "evidence": None}, "published_at": stamp(at), "model": "m",
            "config": "c",
        }
    )  # fmt: skip


def status(at, state, camera="top", boot="b1"):
    return CameraStatus(boot_id=boot, seq=1, camera=camera, state=state, reason=None, published_at=stamp(at))


@pytest.fixture
def image():
    """Everything is well since 0."""
    made = LineImage(LAYOUT, HOLD_MS)
    made.heartbeat(heartbeat(0.0), 0.0)
    made.fail_safe(None)
    return made


def shown(image, now, roi="part"):
    view = image.roi("top", roi, now)
    return view.verdict, view.reason


def test_nothing_is_shown_before_anything_is_heard():
    """A new bridge says fail-safe, and why."""
    made = LineImage(LAYOUT, HOLD_MS)
    assert shown(made, 0.0) == (codes.FAIL_SAFE, codes.SILENT)
    assert not made.line(0.0).safe


def test_a_live_pass_is_shown_with_its_age_its_label_and_its_count(image):
    """The ordinary case."""
    image.result(verdict(0.1), 0.1, recovered=False)
    view = image.roi("top", "part", 0.35)
    assert (view.verdict, view.reason, view.label, view.count, view.seq) == (0x5AA5, codes.NONE, 1, 1, 1)
    assert view.age_ms == pytest.approx(250, abs=1)
    assert shown(image, 0.35, "lid") == (codes.FAIL_SAFE, codes.WAITING)


def test_a_result_expires_and_does_not_come_back(image):
    """At hold_ms it is fail-safe; a clock that is asked for an earlier time later changes nothing."""
    image.result(verdict(0.0), 0.0, recovered=False)
    image.heartbeat(heartbeat(0.9), 0.9)
    assert shown(image, 0.999)[0] == 0x5AA5
    assert shown(image, 1.0) == (codes.FAIL_SAFE, codes.EXPIRED)
    assert shown(image, 0.5) == (codes.FAIL_SAFE, codes.EXPIRED)


def test_silence_of_one_second_is_fail_safe_without_any_word_of_the_client(image):
    """The last line of defence is the image's own clock."""
    image.hold_ms = 60_000
    image.result(verdict(0.0), 0.0, recovered=False)
    assert shown(image, 0.99)[0] == 0x5AA5
    assert shown(image, 1.0) == (codes.FAIL_SAFE, codes.SILENT)
    image.heartbeat(heartbeat(1.2), 1.2)
    assert image.line(1.2).safe
    assert shown(image, 1.2) == (codes.FAIL_SAFE, codes.WAITING), "what was there before the silence is over"


@pytest.mark.parametrize(
    ("state", "reason"), [("fault", codes.FAULT), ("starting", codes.STARTING), ("busy", codes.BUSY)]
)
def test_every_state_but_ready_is_fail_safe(image, state, reason):
    """Also for what comes while it lasts."""
    image.result(verdict(0.0), 0.0, recovered=False)
    image.heartbeat(heartbeat(0.1, state), 0.1)
    assert shown(image, 0.1) == (codes.FAIL_SAFE, reason)
    image.result(verdict(0.2, seq=2), 0.2, recovered=False)
    assert shown(image, 0.2) == (codes.FAIL_SAFE, reason)
    image.heartbeat(heartbeat(0.3), 0.3)
    assert shown(image, 0.3) == (codes.FAIL_SAFE, codes.WAITING)


def test_the_clients_word_is_enough(image):
    """fail_safe(reason) is obeyed while heartbeats say ready; None brings nothing back."""
    image.result(verdict(0.0), 0.0, recovered=False)
    image.fail_safe("silent")
    assert shown(image, 0.1)[0] == codes.FAIL_SAFE
    image.fail_safe(None)
    assert shown(image, 0.1) == (codes.FAIL_SAFE, codes.WAITING)


@pytest.mark.parametrize("state", ["fault", "starting"])
def test_a_camera_at_fault_bars_its_regions(image, state):
    """Until a result comes after it is ready again; other cameras go on."""
    image.result(verdict(0.0), 0.0, recovered=False)
    image.result(part(0.0), 0.0, recovered=False)
    image.status(status(0.1, state), 0.1, recovered=False)
    assert shown(image, 0.1) == (codes.FAIL_SAFE, codes.CAMERA)
    image.status(status(0.15, "ready"), 0.15, recovered=False)
    assert shown(image, 0.15) == (codes.FAIL_SAFE, codes.WAITING), "what was there before does not come back"
    image.status(status(0.15, state), 0.15, recovered=False)
    image.result(verdict(0.2, seq=2), 0.2, recovered=False)
    image.status(status(0.3, "ready"), 0.3, recovered=False)
    assert shown(image, 0.3) == (codes.FAIL_SAFE, codes.WAITING)
    assert image.roi("side", "edge", 0.3).verdict == 0x5AA5


def test_a_camera_whose_state_was_lost_is_barred_until_it_is_known_again(image):
    """By its next word, or by what else is learnt of it; what it says itself is newer."""
    image.status(status(0.0, "fault"), 0.0, recovered=False)
    for state, known, reason in (("ready", "ready", codes.WAITING), ("fault", "fault", codes.CAMERA)):
        image.lost("status/top/", 1)
        assert (image.camera("top", 0.1).state, shown(image, 0.1)) == (None, (codes.FAIL_SAFE, codes.CAMERA))
        image.result(verdict(0.1, seq=1), 0.1, recovered=False)
        image.learnt("b0", "top", "ready", None)
        assert shown(image, 0.1) == (codes.FAIL_SAFE, codes.CAMERA), "of another boot"
        image.learnt("b1", "top", state, None)
        image.learnt("b1", "top", "busy", None)
        assert (image.camera("top", 0.1).state, shown(image, 0.1)) == (known, (codes.FAIL_SAFE, reason))
    image.lost("status/top/", 1)
    image.status(status(0.2, "ready"), 0.2, recovered=False)
    assert shown(image, 0.2) == (codes.FAIL_SAFE, codes.WAITING)
    assert image.camera("side", 0.2).state is None


def test_a_camera_state_that_waited_counts_unless_it_is_of_another_boot(image):
    """It holds until the next, however late it is read."""
    image.status(status(0.0, "fault"), 0.0, recovered=False)
    image.status(status(0.1, "ready", boot="b0"), 0.1, recovered=True)
    assert image.camera("top", 0.1).state == "fault"
    image.status(status(0.1, "ready"), 0.1, recovered=True)
    assert image.camera("top", 0.1).state == "ready"


def counted(image, now, roi="part"):
    view = image.roi("top", roi, now)
    return view.verdict, view.reason, view.count, view.seq


@pytest.mark.parametrize("when", ["first", "last"])
def test_a_last_value_from_before_the_bridge_came_is_neither_shown_nor_counted(when):
    """The heartbeat before it or behind it; the next result is the first."""
    image = LineImage(LAYOUT, HOLD_MS)
    image.fail_safe(None)
    beat = heartbeat(0.0, topics={"verdict/top/part/": 7})
    if when == "first":
        image.heartbeat(beat, 0.0)
    image.result(verdict(0.0, seq=7, replayed=True), 0.0, recovered=False)
    image.heartbeat(beat, 0.0)
    assert counted(image, 0.1) == (codes.FAIL_SAFE, codes.WAITING, 0, 7)
    image.result(verdict(0.1, seq=8), 0.1, recovered=False)
    assert counted(image, 0.1) == (codes.VERDICT_CODES["pass"], codes.NONE, 1, 8)


def test_a_repeat_of_what_was_missed_is_counted_and_never_shown(image):
    """The connection was gone for a moment: its part is not the next one's. Of a topic that is new as well."""
    image.result(verdict(0.0, seq=1), 0.0, recovered=False)
    image.result(verdict(0.1, seq=2, kind="fail", replayed=True), 0.1, recovered=False)
    assert counted(image, 0.1) == (codes.FAIL_SAFE, codes.LOST, 2, 2)
    image.result(verdict(0.1, seq=1, roi="lid", replayed=True), 0.1, recovered=False)
    assert counted(image, 0.1, "lid") == (codes.FAIL_SAFE, codes.LOST, 1, 1)
    image.result(verdict(0.2, seq=3), 0.2, recovered=False)
    assert counted(image, 0.2) == (codes.VERDICT_CODES["pass"], codes.NONE, 3, 3)


def test_of_a_daemon_that_came_later_every_result_is_counted(image):
    """Its first ones were missed: told as lost, and the last of them as a repeat."""
    image.result(verdict(0.0, seq=50), 0.0, recovered=False)
    image.lost("verdict/top/part/", 2)
    image.result(verdict(0.1, seq=3, boot="b2", replayed=True), 0.1, recovered=False)
    image.heartbeat(heartbeat(0.2, boot="b2", topics={"verdict/top/part/": 3}), 0.2)
    assert (image.roi("top", "part", 0.2).count, image.roi("top", "part", 0.2).seq) == (4, 3)


def test_what_was_recovered_is_counted_and_never_shown(image):
    """Of this boot it is newer than what is shown; of an earlier one it is only history."""
    image.result(verdict(0.0, seq=1), 0.0, recovered=False)
    image.result(verdict(0.1, seq=900, boot="b0", replayed=True), 0.1, recovered=True)
    assert shown(image, 0.1)[0] == 0x5AA5
    image.result(verdict(0.1, seq=2, replayed=True), 0.1, recovered=True)
    view = image.roi("top", "part", 0.1)
    assert (view.verdict, view.reason, view.count, view.seq) == (codes.FAIL_SAFE, codes.LOST, 3, 2)


def test_a_lost_result_is_counted_and_makes_the_one_before_it_void(image):
    """Nobody knows what the newest says."""
    image.result(verdict(0.0), 0.0, recovered=False)
    image.lost("verdict/top/part/", 3)
    view = image.roi("top", "part", 0.1)
    assert (view.verdict, view.reason, view.count) == (codes.FAIL_SAFE, codes.LOST, 4)
    image.lost("verdict/else/where/", 3)


def test_a_restart_of_the_daemon_voids_everything(image):
    """A new boot begins with nothing, its numbers at 1; and not before a second, that no PLC overlooks it."""
    image.result(verdict(0.0, seq=50), 0.0, recovered=False)
    for number, now in enumerate((0.1, 0.6, 1.05), 1):
        image.heartbeat(heartbeat(now, boot="b2"), now)
        image.result(verdict(now, seq=number, boot="b2"), now, recovered=False)
        assert shown(image, now) == (codes.FAIL_SAFE, codes.STARTING)
    assert shown(image, 1.15) == (codes.FAIL_SAFE, codes.WAITING)
    image.result(verdict(1.2, seq=4, boot="b2"), 1.2, recovered=False)
    assert shown(image, 1.2)[0] == 0x5AA5


def test_an_older_number_changes_nothing(image):
    """A repeat for somebody else's subscription, or a defect of the transport."""
    image.result(verdict(0.0, seq=2, kind="fail"), 0.0, recovered=False)
    assert not image.result(verdict(0.1, seq=2), 0.1, recovered=False)
    assert not image.result(verdict(0.1, seq=1), 0.1, recovered=False)
    assert shown(image, 0.1)[0] == codes.VERDICT_CODES["fail"]


def test_a_region_is_driven_by_what_its_layout_says(image):
    """`edge` by parts, `part` by verdicts, and nothing by a camera or a region that is not there."""
    assert image.result(part(0.0), 0.0, recovered=False)
    assert not image.result(verdict(0.0, camera="side", roi="edge"), 0.0, recovered=False)
    assert not image.result(verdict(0.0, roi="else"), 0.0, recovered=False)
    assert image.roi("side", "edge", 0.1).seq == 1


def test_no_part_in_view_is_no_result_with_a_reason_of_its_own(image):
    """`no_result` with the empty class."""
    message = verdict(0.0, kind="no_result", reason=None, label="empty", score=0.9)
    image.result(message, 0.0, recovered=False)
    view = image.roi("top", "part", 0.0)
    assert (view.verdict, view.reason, view.label) == (codes.VERDICT_CODES["no_result"], codes.EMPTY, 3)


def test_a_label_that_the_layout_does_not_have_has_a_number_of_its_own(image):
    """It is neither none nor somebody else's."""
    image.result(verdict(0.0, label="new"), 0.0, recovered=False)
    assert image.roi("top", "part", 0.0).label == 0xFFFF


def test_a_silence_that_nobody_looked_into_is_a_silence(image):
    """A second without a heartbeat ends with one before any PLC reads: the pass within it is over all the same."""
    image.result(verdict(0.9), 0.9, recovered=False)
    image.heartbeat(heartbeat(1.1), 1.1)
    assert shown(image, 1.1) == (codes.FAIL_SAFE, codes.WAITING)


def test_what_waited_in_a_buffer_is_as_old_as_it_is(image):
    """A bridge that was stopped for 8 s reads heartbeats and passes of that time all at once: none counts."""
    for beat in range(17):
        image.heartbeat(heartbeat(0.5 * beat), 8.1)
        image.result(verdict(0.5 * beat, seq=beat + 1), 8.1, recovered=False)
        if beat < 14:
            assert not image.line(8.1).safe
            assert shown(image, 8.1)[0] == codes.FAIL_SAFE
    assert image.line(8.1).safe, "the last heartbeat is 0.1 s old"
    assert image.roi("top", "part", 8.1).age_ms == pytest.approx(100, abs=1)


def test_a_clock_that_is_set_forward_is_noticed_with_the_next_message_and_one_set_back_within_ten_seconds():
    """The daemon's wall clock; both to the safe side."""
    transit = Transit()
    transit.heard(EPOCH, 0.0)
    transit.heard(EPOCH + 100, 0.5)
    assert transit.age_s(EPOCH + 100, 0.5) == 0.0
    for beat in range(2, 22):
        transit.heard(EPOCH + 0.5 * beat, 0.5 * beat)
        if beat == 2:
            assert transit.age_s(EPOCH + 1, 1.0) > 99
    assert transit.age_s(EPOCH + 10.5, 10.5) == 0.0


@st.composite
def histories(draw):
    """(what, seconds since the last) …; times are mostly within the limits, so that passes do show."""
    step = st.one_of(
        st.tuples(st.just("verdict"), st.sampled_from(["pass", "pass", "fail", "no_result"])),
        st.tuples(st.just("repeat"), st.just("pass")),
        st.tuples(st.just("recovered"), st.just("pass")),
        st.tuples(st.just("late"), st.floats(0.1, 3)),
        st.tuples(st.just("beat"), st.sampled_from(["ready", "ready", "ready", "fault", "busy", "starting"])),
        st.tuples(st.just("camera"), st.sampled_from(["ready", "ready", "busy", "fault", "starting"])),
        st.tuples(st.just("client"), st.sampled_from([None, None, "silent"])),
        st.tuples(st.just("lost"), st.integers(1, 5)),
        st.tuples(st.just("restart"), st.just(None)),
        st.tuples(st.just("wait"), st.just(None)),
    )
    return draw(st.lists(st.tuples(step, st.floats(0.01, 0.45)), max_size=40))


@examples(150)
@given(history=histories())
@example(
    history=[
        (("restart", None), 0.25),
        (("beat", "ready"), 0.25),
        (("client", None), 0.25),
        (("verdict", "pass"), 0.25),
    ]
)
def test_a_pass_is_shown_only_while_everything_speaks_for_it(history):
    """Any history: whoever reads a pass could have known every fact that it needs; and no result is uncounted."""
    image = LineImage(LAYOUT, HOLD_MS)
    now, boot, seq = 0.0, 1, 0
    beat_at, state, alarm, camera = -9.0, "none", "connecting", None
    heard, restarted_at = False, -9.0  # a restart is noticed by who had heard the daemon before
    published, counted_before = 0, None  # since the bridge listens; what it had counted by then
    newest = None  # (published, kind) of the newest live result, None once anything spoke against it
    for (what, value), pause in history:
        now += pause
        if now - beat_at >= 1:
            newest = None
        match what:
            case "verdict":
                seq += 1
                image.result(verdict(now, seq, value, boot=f"b{boot}"), now, recovered=False)
                newest = (now, value)
            case "late":
                seq += 1
                image.result(verdict(now - value, seq, boot=f"b{boot}"), now, recovered=False)
                newest = (now - value, "pass") if newest or beat_at > -9 else None
            case "repeat":
                seq += 1
                image.result(verdict(now, seq, replayed=True, boot=f"b{boot}"), now, recovered=False)
                newest = None
            case "recovered":
                seq += 1
                image.result(verdict(now, seq, replayed=True, boot=f"b{boot}"), now, recovered=True)
                newest = None
            case "beat":
                image.heartbeat(heartbeat(now, value, boot=f"b{boot}"), now)
                beat_at, state = now, value
            case "camera":
                image.status(status(now, value, boot=f"b{boot}"), now, recovered=False)
                camera = value
            case "client":
                image.fail_safe(value)
                alarm = value
            case "lost":
                seq += value
                image.lost("verdict/top/part/", value)
                newest = None
            case "restart":
                boot, seq, newest, camera = boot + 1, 0, None, None
                restarted_at = now if heard else restarted_at
                image.heartbeat(heartbeat(now, "starting", boot=f"b{boot}"), now)
                beat_at, state = now, "starting"
        heard = heard or what in ("verdict", "late", "repeat", "beat", "camera", "restart")
        if state != "ready" or alarm is not None or camera in ("fault", "starting") or now - beat_at >= 1:
            newest = None
        if now - restarted_at < 1:
            newest = None
        view = image.roi("top", "part", now)
        if what in ("verdict", "late", "repeat", "recovered", "lost"):
            published += value if what == "lost" else 1
        if counted_before is None and what in ("beat", "restart"):
            counted_before = view.count - published
        assert counted_before is None or view.count == counted_before + published
        if newest is None or now - newest[0] >= HOLD_MS / 1000 + 1e-6:
            assert view.verdict == codes.FAIL_SAFE
            assert (view.result, view.label, view.age_ms) == (None, 0, None)
        elif now - newest[0] < HOLD_MS / 1000 - 1e-3 and what == "verdict":
            assert view.verdict == codes.VERDICT_CODES[newest[1]], "and what may be shown is"
