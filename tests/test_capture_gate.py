"""Which frames may be judged: pacing, size, damage, age and frost, with simulated clocks."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from properties import examples

from inspectd.capture.freshness import HORIZON_S, TOLERANCE_S, BacklogDetector
from inspectd.capture.frost import FrostDetector
from inspectd.capture.gate import Gate, Pacer
from inspectd.config import CameraConfig
from inspectd.frame import Box, Frame

WIDTH, HEIGHT = 64, 48
NOISE = itertools.count(1)


def config(source="rtsp://camera/1", rois=((0, 0, 32, 32),), **changes):
    boxes = [{"name": f"roi{number}", "box": list(box)} for number, box in enumerate(rois)]
    return CameraConfig(name="cam", source=source, rois=boxes, **changes)


def frame(arrival=0.0, pts=None, *, width=WIDTH, height=HEIGHT, corrupt=False, luma=None, noise=True):
    """A yuv420p frame; with `noise` one pixel inside the ROI differs from every other frame's."""
    luma = np.full((height, width), 90, np.uint8) if luma is None else luma
    if noise:
        luma[0, :4] = np.array([next(NOISE)], np.uint32).view(np.uint8)
    half = np.full(((height + 1) // 2, (width + 1) // 2), 128, np.uint8)
    return Frame("yuv420p", width, height, (luma, half, half), "bt709", False, arrival, 0.0, "arrival", pts, 0, corrupt)


def settled_gate(**changes):
    """A gate in the middle of a healthy 30 fps stream, and the (arrival, pts) of its last frame."""
    gate = Gate(config(**changes))
    for number in range(60):
        arrival, pts = 100 + number / 30, number / 30
        gate.admit(frame(arrival, pts), arrival)
    assert gate.admit(frame(102.0, 2.0), 102.0) == "admitted"
    return gate, 102.0, 2.0


class TestOrder:
    """Which rule names a frame that breaks several."""

    def test_a_healthy_frame_is_admitted(self):
        gate, arrival, pts = settled_gate()
        assert gate.admit(frame(arrival + 0.04, pts + 0.04), arrival + 0.05) == "admitted"

    def test_damage_comes_before_size_and_age(self):
        gate, arrival, pts = settled_gate()
        assert gate.admit(frame(arrival + 9, pts + 0.04, width=32, corrupt=True), arrival + 19) == "corrupt"

    def test_size_comes_before_age(self):
        gate, arrival, pts = settled_gate()
        assert gate.admit(frame(arrival + 9, pts + 0.04, width=32), arrival + 19) == "resized"

    def test_age_is_what_a_frame_had_waited_before_it_arrived_and_since(self):
        gate, arrival, pts = settled_gate(max_age_ms=500)
        late = frame(arrival + 0.34, pts + 0.04)
        assert gate.admit(late, arrival + 0.44) == "admitted"
        assert late.waited_s == pytest.approx(0.3, abs=0.02)
        assert gate.admit(frame(arrival + 0.38, pts + 0.08), arrival + 0.68) == "stale"

    def test_age_comes_before_frost(self):
        gate, arrival, pts = settled_gate(frozen_after_s=1)
        still = frame(arrival + 0.03, pts + 0.03, noise=False)
        gate.admit(still, arrival + 0.03)
        still.arrival, still.pts = arrival + 9, pts + 0.06
        assert gate.admit(still, arrival + 9) == "stale"

    def test_a_frame_left_out_by_max_fps_is_nothing_else(self):
        gate, arrival, pts = settled_gate(max_fps=1)
        assert gate.admit(frame(arrival + 0.1, pts + 0.1, corrupt=True), arrival + 0.1) == "max_fps"
        assert gate.admit(frame(arrival + 1.0, pts + 1.0, corrupt=True), arrival + 1.0) == "corrupt"

    def test_frames_left_out_by_max_fps_still_feed_the_backlog_detector(self):
        """At one inspected frame in thirty, the backlog is known from the other twenty-nine."""
        gate = Gate(config(max_fps=1))
        seen = [gate.admit(frame(100 + n / 30, n / 30), 100 + n / 30) for n in range(31)]
        assert seen[0] == "stale"  # nothing was known yet
        assert set(seen[1:30]) == {"max_fps"}
        assert seen[30] == "admitted"

    def test_frames_left_out_by_max_fps_still_feed_the_frost_detector(self):
        """A change between two inspected frames is a change."""
        gate = Gate(config("conveyor:", max_fps=1, frozen_after_s=1.5))
        admissions = []
        for number in range(120):
            picture = frame(number / 30, number / 30, noise=number % 30 == 15)
            admissions.append(gate.admit(picture, number / 30))
        assert "frozen" not in admissions


class TestSize:
    def test_the_first_frame_sets_the_size_for_the_life_of_the_camera(self):
        """Also over a reconnect: a camera that comes back with another resolution shows another place."""
        gate = Gate(config("conveyor:"))
        assert gate.admit(frame(0.0), 0.0) == "admitted"
        gate.restart()
        assert gate.admit(frame(0.1, width=128, height=96), 0.1) == "resized"
        assert gate.admit(frame(0.2), 0.2) == "admitted"

    def test_a_damaged_frame_sets_no_size(self):
        gate = Gate(config("conveyor:"))
        assert gate.admit(frame(0.0, width=80, corrupt=True), 0.0) == "corrupt"
        assert gate.admit(frame(0.1), 0.1) == "admitted"

    def test_a_configured_size_is_the_size(self):
        gate = Gate(config("conveyor:", size=(128, 96)))
        assert gate.admit(frame(0.0), 0.0) == "resized"
        assert gate.misfit(frame(0.0)) == "the frame is 64x48, expected 128x96"
        assert gate.admit(frame(0.1, width=128, height=96), 0.1) == "admitted"

    def test_a_roi_outside_the_frame_refuses_every_frame(self):
        gate = Gate(config("conveyor:", rois=((0, 0, 8, 8), (40, 0, 32, 8))))
        assert [gate.admit(frame(t / 10), t / 10) for t in range(3)] == ["resized"] * 3
        assert gate.misfit(frame(0.0)) == "ROI 'roi1' [40, 0, 32, 8] lies outside the 64x48 frame"


class TestRecordings:
    def test_a_recording_is_neither_stale_nor_frozen(self):
        """However late the engine takes it, and however still its pictures are."""
        gate = Gate(config("file:clip.mp4", frozen_after_s=0.1, max_age_ms=1))
        admissions = {gate.admit(frame(number, number / 30, noise=False), number + 50.0) for number in range(20)}
        assert admissions == {"admitted"}

    def test_generated_pictures_that_come_late_are_not_old(self):
        """A busy machine generates behind schedule; nothing outside the process has queued them."""
        gate = Gate(config("conveyor:", frozen_after_s=0))
        assert {gate.admit(frame(n * 1.0, n / 30), n * 1.0) for n in range(20)} == {"admitted"}

    def test_any_live_frame_that_was_held_up_after_arrival_is_stale(self):
        gate = Gate(config("conveyor:", max_age_ms=500))
        assert gate.admit(frame(10.0), 10.49) == "admitted"
        assert gate.admit(frame(10.1), 10.61) == "stale"


# -- max_fps ----------------------------------------------------------------------------------------


def paced(pacer, times):
    """Stream times of the frames that were let through; `times` are pairs (arrival, pts)."""
    return [arrival if pts is None else pts for arrival, pts in times if pacer.due(arrival, pts)]


@given(
    fps=st.floats(1, 120),
    max_fps=st.floats(0.5, 240),
    jitter=st.floats(0, 0.24),
    seed=st.integers(0, 9999),
    with_pts=st.booleans(),
    live=st.booleans(),
)
@examples(150)
def test_pacing_is_even_and_misses_no_rate(fps, max_fps, jitter, seed, with_pts, live):
    """Of a steady stream, min(fps, max_fps) frames a second are left, one about every period."""
    assume(with_pts or live)
    rng = random.Random(seed)
    period, interval = 1 / max_fps, 1 / fps
    spread = jitter * max(period, interval) * (0.9 if with_pts else 1)
    times = [(50 + n * interval + rng.uniform(0, spread), n * interval if with_pts else None) for n in range(400)]
    kept = paced(Pacer(max_fps, live=live), times)
    expected = min(400, 399 * interval / period + 1)
    assert expected - 2.5 <= len(kept) <= expected + 2
    gaps = np.diff(kept)
    if len(gaps):
        assert gaps.max() <= max(period + interval, interval) + (0 if with_pts else spread) + 1e-9


@given(
    steps=st.lists(st.tuples(st.floats(0.001, 0.2), st.floats(-5, 5) | st.none()), min_size=50, max_size=300),
    max_fps=st.floats(1, 60),
)
@examples(150)
def test_no_pts_however_mad_silences_or_unleashes_a_live_camera(steps, max_fps):
    """With any pts at all, the long-run rate is that of our own clock, and no long gap opens."""
    arrivals = list(itertools.accumulate((step for step, _ in steps), initial=7.0))[1:]
    pacer = Pacer(max_fps, live=True)
    kept = [at for at, (_, pts) in zip(arrivals, steps, strict=True) if pacer.due(at, pts)]
    assert kept
    elapsed = arrivals[-1] - arrivals[0]
    assert len(kept) <= (elapsed + 2) * max_fps + 2
    edges = [arrivals[0], *kept, arrivals[-1]]
    assert max(np.diff(edges)) <= 2 + 2 / max_fps + 0.2


def test_a_camera_that_already_runs_at_max_fps_loses_no_frame_to_jitter():
    rng = random.Random(3)
    times = [(n / 30 + rng.uniform(0, 0.012), None) for n in range(3000)]
    assert len(paced(Pacer(30, live=True), times)) == 3000


def test_clumped_arrivals_are_paced_by_the_streams_own_time():
    """Three frames every 100 ms: arrival alone would leave 10 of the wanted 15 a second."""
    times = [(n // 3 * 0.1, n / 30) for n in range(300)]
    assert len(paced(Pacer(15, live=True), times)) == pytest.approx(150, abs=2)


def test_a_pts_that_starts_over_opens_no_gap():
    """Neither does a jump forward let more through."""
    for jump in (-1000.0, -0.5, 0.9, 1000.0):
        pacer = Pacer(10, live=True)
        kept = [n / 30 for n in range(600) if pacer.due(n / 30, n / 30 + (jump if n >= 300 else 0))]
        after = [at for at in kept if 9 < at < 12]
        assert max(np.diff(after)) <= (0.2 if abs(jump) != 0.9 else 0.3)
        assert len(kept) == pytest.approx(200, abs=10)


def test_nothing_is_made_up_for_after_a_pause():
    times = [(n / 30, None) for n in range(90)] + [(60 + n / 30, None) for n in range(90)]
    kept = np.array(paced(Pacer(10, live=True), times))
    assert (kept >= 60).sum() == pytest.approx(30, abs=1)


def test_a_recording_is_paced_by_its_own_time_whatever_our_speed():
    fast = [(n * 0.001, n / 30) for n in range(300)]
    slow = [(n * 1.0, n / 30) for n in range(300)]
    kept_fast = paced(Pacer(10, live=False), fast)
    assert kept_fast == paced(Pacer(10, live=False), slow)
    assert len(kept_fast) == pytest.approx(100, abs=1)


def test_a_recording_that_starts_over_goes_on_being_paced():
    once = [n / 30 for n in range(90)]
    kept = paced(Pacer(10, live=False), [(0.0, pts) for pts in once * 3])
    assert len(kept) == pytest.approx(90, abs=4)


# -- backlog ------------------------------------------------------------------------------------------

FPS = 25
MAX_AGE_S = 0.5


def simulate(
    *, seconds, fps=FPS, cached_s=0.0, read_fps=200.0, jitter_s=0.0, drops=0.0, drift=0.0, stops=(), origin=0.0, seed=0
):
    """A camera, a buffer and a reader: yields (arrival, pts, age), age being what nobody can measure.

    The camera takes a picture every 1/fps seconds. The first `cached_s` seconds of them are handed over
    at once when the reader connects. The reader needs 1/read_fps seconds a frame and does not run at all
    during `stops`, pairs (begin, length) in seconds after connecting; frames wait for it.
    """
    rng = random.Random(seed)
    free_at = 0.0
    for number in range(int((seconds + cached_s) * fps)):
        taken = number / fps - cached_s
        if rng.random() < drops:
            continue
        arrival = max(taken + rng.uniform(0, jitter_s), free_at, 0.0)
        for begin, length in stops:
            if begin <= arrival < begin + length:
                arrival = begin + length
        free_at = arrival + 1 / read_fps
        yield 1000 + arrival, origin + number / fps * (1 + drift), arrival - taken


def judged(stream, max_age_s=MAX_AGE_S):
    """[(arrival, age, stale)] of a whole connection."""
    detector = BacklogDetector(max_age_s)
    return [(arrival - 1000, age, detector.stale(arrival, pts)) for arrival, pts, age in stream]


connections = st.fixed_dictionaries(
    {
        "fps": st.floats(5, 60),
        "cached_s": st.floats(0, 8),
        "speed": st.floats(1.4, 20),  # of the reader, in multiples of fps
        "jitter_s": st.floats(0, 0.04),
        "drops": st.floats(0, 0.3),
        "drift": st.floats(-150e-6, 150e-6),
        "stops": st.lists(st.tuples(st.floats(0, 12), st.floats(0.05, 4)), max_size=3),
        "origin": st.floats(-1e5, 1e5),
        "seed": st.integers(0, 99999),
    }
)


@given(connection=connections)
@example(
    connection={  # a decoder that takes its time over the first frame of a burst
        "fps": 30,
        "cached_s": 2.0,
        "speed": 1.5,
        "jitter_s": 0.0,
        "drops": 0.0,
        "drift": 0.0,
        "stops": [(0.001, 0.6)],
        "origin": 0.0,
        "seed": 0,
    }
)
@examples(150)
def test_no_old_frame_passes_as_fresh_and_no_fresh_stream_stays_stale(connection):
    """Bursts at the start, stops of our process, jitter, losses and drift, in any mixture."""
    rest = {key: value for key, value in connection.items() if key != "speed"}
    frames = judged(simulate(seconds=60, read_fps=connection["speed"] * connection["fps"], **rest))
    believed = [age for _, age, stale in frames if not stale]
    assert max(believed, default=0) <= MAX_AGE_S + TOLERANCE_S + connection["jitter_s"] + 0.015
    # At worst 20 s of backlog, drained at 1.4 times real time by second 50; then the floor has to hold.
    assert not any(stale for arrival, _, stale in frames if arrival >= 57)


def test_a_healthy_stream_is_fresh_after_six_tenths_of_a_second():
    frames = judged(simulate(seconds=5, jitter_s=0.01))
    assert all(stale for arrival, _, stale in frames if arrival < 0.5)
    assert not any(stale for arrival, _, stale in frames if arrival > 0.9)


def test_the_group_of_pictures_a_server_hands_out_at_connect_is_stale():
    """Each of its frames has a lower lag than the one before; that is what betrays them."""
    frames = judged(simulate(seconds=5, cached_s=2, read_fps=150))
    assert all(stale for _, age, stale in frames if age > 0.1)
    assert not any(stale for arrival, _, stale in frames if arrival > 2.0)


def test_after_our_process_was_stopped_the_backlog_is_stale_until_it_is_drained():
    frames = judged(simulate(seconds=60, stops=[(10, 30)], read_fps=100))
    assert all(stale for _, age, stale in frames if age > MAX_AGE_S + TOLERANCE_S)
    late = [(age, stale) for arrival, age, stale in frames if arrival >= 40]
    assert late[0][1]
    assert all(not stale for age, stale in late if age < MAX_AGE_S - TOLERANCE_S)


def test_other_limits_forget_no_backlog():
    """Whoever sees `stale` allows more age: that makes no picture younger."""
    gate, arrival, pts = settled_gate(max_age_ms=500)

    def late(first, last):
        return [gate.admit(frame(arrival + n / 30 + 3, pts + n / 30), arrival + n / 30 + 3) for n in range(first, last)]

    assert set(late(1, 60)) == {"stale"}
    gate.adopt(config(max_age_ms=600), None)
    assert set(late(60, 150)) == {"stale"}
    gate.adopt(config(max_age_ms=4000), None)
    assert set(late(150, 160)) == {"admitted"}


def test_a_backlog_with_a_hole_in_it_stays_stale():
    """The server threw part of its queue away: pts jumps forward, but what follows is still old."""
    detector = BacklogDetector(MAX_AGE_S)
    for n in range(100):
        detector.stale(1000 + n / FPS, n / FPS)
    now = 1000 + 30  # stopped for 26 s, while the server kept pts 4 to 10 and then 25 to 28
    for pts in (*np.arange(4, 10, 1 / FPS), *np.arange(25, 28, 1 / FPS)):
        now += 0.001
        assert detector.stale(now, pts)


def test_a_slowly_draining_backlog_is_not_believed_again_and_again():
    """Shrinking by 1 % of real time it looks steady for a moment, but not for long, and not repeatedly."""
    frames = judged(simulate(seconds=60, cached_s=3, read_fps=FPS * 1.01))
    assert all(age > MAX_AGE_S + TOLERANCE_S for _, age, _ in frames)
    believed = [arrival for arrival, _, stale in frames if not stale]
    assert len(believed) < 3 * FPS
    assert max(believed, default=0) < 5


@pytest.mark.parametrize(
    ("fps", "cached_s", "speed", "stops"),
    [
        (30, 0.5652, 1.916, [(0.134, 0.532), (0.8564, 0.5035), (1.8413, 0.34)]),
        (25, 2.4603, 1.5649, [(2.3044, 0.4972), (1.6134, 0.3093), (0.039, 0.3567)]),
        (17, 1.9679, 1.4882, [(3.6108, 0.8756), (0.0412, 1.3984), (0.3763, 1.0987)]),
    ],
)
def test_hiccups_that_keep_a_burst_from_undercutting_its_floor_do_not_prove_the_floor(fps, cached_s, speed, stops):
    """Three stops while a burst is read: the lag is lifted again and again on its way down."""
    frames = judged(simulate(seconds=12, fps=fps, cached_s=cached_s, read_fps=speed * fps, stops=stops))
    assert max((age for _, age, stale in frames if not stale), default=0) <= MAX_AGE_S + TOLERANCE_S


@pytest.mark.parametrize("ppm", [-200, -50, 50, 190])
def test_a_day_of_clock_drift_makes_nothing_stale(ppm):
    """A camera clock that runs wrong by as much as crystals do; 190 ppm are 16 s a day. One frame a second here."""
    detector = BacklogDetector(MAX_AGE_S)
    stale = [detector.stale(1000 + n, n * (1 - ppm * 1e-6)) for n in range(86_400)]
    assert not any(stale[5:])


def test_a_pts_jump_forward_or_back_costs_about_a_second():
    """A camera that sets its clock: refused until the new clock is known, then fresh again."""
    for jump in (1e4, 3.0, -3.0, -1e4):
        detector = BacklogDetector(MAX_AGE_S)
        stale = [detector.stale(1000 + n / FPS, n / FPS + (jump if n >= 100 else 0)) for n in range(200)]
        assert not any(stale[25:100])
        assert stale[100]
        assert not any(stale[137:])


def test_a_single_mad_pts_does_not_poison_the_floor():
    detector = BacklogDetector(MAX_AGE_S)
    stale = [detector.stale(1000 + n / FPS, 1e6 if n == 100 else n / FPS) for n in range(200)]
    assert not any(stale[25:100])
    assert not any(stale[130:])


@pytest.mark.parametrize("mad", [float("nan"), float("inf"), float("-inf"), None])
def test_a_pts_that_is_no_number_neither_frees_a_stale_frame_nor_condemns_a_fresh_one(mad):
    detector = BacklogDetector(MAX_AGE_S)
    assert detector.stale(1000, mad)
    for n in range(1, 50):
        detector.stale(1000 + n / FPS, n / FPS)
    assert not detector.stale(1002.0, mad)
    assert not detector.stale(1002.04, 2.04)
    assert detector.stale(1010.0, 2.08)
    assert detector.stale(1010.001, mad)


def test_a_late_frame_is_stale_alone():
    """One retransmitted frame is old; its neighbours are not, and no floor is lost over it."""
    detector = BacklogDetector(MAX_AGE_S)
    stale = [detector.stale(1000 + n / FPS + (0.9 if n == 100 else 0), n / FPS) for n in range(200)]
    assert stale[100]
    assert not any(stale[25:100] + stale[101:])


@pytest.mark.parametrize("jitter_s", [0.05, 0.15])
def test_jitter_makes_nothing_stale(jitter_s):
    """Each frame is held up by the one before, so one without delay is a rare sight; still no floor is lost."""
    for seed in range(20):
        frames = judged(simulate(seconds=60, jitter_s=jitter_s, read_fps=1000, seed=seed))
        assert not any(stale for arrival, _, stale in frames if arrival > 20)


def test_a_stream_without_pts_is_stale_for_nobody_can_tell_its_age():
    detector = BacklogDetector(MAX_AGE_S)
    assert all(detector.stale(1000 + n / FPS, None) for n in range(200))


def test_a_frame_without_pts_behind_a_gap_is_stale():
    """It may be from within the gap; the next one that has a pts tells."""
    detector = BacklogDetector(MAX_AGE_S)
    for n in range(100):
        detector.stale(1000 + n / FPS, n / FPS)
    assert not detector.stale(1004.0, None)
    assert detector.stale(1006.0, None)
    assert detector.stale(1006.04, None)
    assert not detector.stale(1006.08, 6.08)
    assert not detector.stale(1006.12, None)


def test_a_reconnect_forgets_the_clocks():
    gate, arrival, _ = settled_gate()
    gate.restart()
    admissions = [gate.admit(frame(arrival + 5 + n / 30, n / 30), arrival + 5 + n / 30) for n in range(40)]
    assert set(admissions[:17]) == {"stale"}
    assert set(admissions[24:]) == {"admitted"}


def test_the_wait_for_a_floor_never_exceeds_the_horizon():
    """Even after it was undercut many times, a steady stream is believed within HORIZON_S."""
    detector = BacklogDetector(MAX_AGE_S)
    stale, offset, n = [], 0.0, 0
    for _ in range(20):  # each time just settled, the lag falls by 50 ms
        while detector.stale(1000 + n / FPS, n / FPS + offset):
            n += 1
        n += 1
        offset += 0.05
    begin = n
    while detector.stale(1000 + n / FPS, n / FPS + offset):
        stale.append(n)
        n += 1
    assert (n - begin) / FPS <= HORIZON_S + 0.5


# -- frost --------------------------------------------------------------------------------------------


def frozen_at(detector, pictures):
    return [detector.frozen(picture) for picture in pictures]


def test_a_repeated_picture_is_frozen_after_the_limit_until_it_changes():
    detector = FrostDetector([Box(0, 0, 32, 32)], 1.0)
    still = [frame(n / 10, noise=False) for n in range(20)]
    assert frozen_at(detector, still) == [False] * 11 + [True] * 9
    assert not detector.frozen(frame(2.0))
    assert not detector.frozen(frame(2.1))


def test_sensor_noise_over_a_static_scene_is_not_frozen():
    detector = FrostDetector([Box(0, 0, 64, 48)], 0.5)
    rng = np.random.default_rng(1)
    scene = rng.integers(60, 200, (HEIGHT, WIDTH), np.uint8)
    pictures = [
        frame(n / 10, luma=scene + (rng.random(scene.shape) < 0.05).astype(np.uint8), noise=False) for n in range(30)
    ]
    assert not any(frozen_at(detector, pictures))


def test_a_clock_drawn_outside_the_rois_does_not_hide_a_frozen_picture():
    detector = FrostDetector([Box(0, 16, 32, 32)], 0.5)
    assert frozen_at(detector, [frame(n / 10) for n in range(10)])[6:] == [True] * 4  # the noise is in row 0


def test_one_living_roi_of_several_is_enough():
    detector = FrostDetector([Box(0, 16, 32, 32), Box(0, 0, 16, 16)], 0.5)
    assert not any(frozen_at(detector, [frame(n / 10) for n in range(10)]))


@pytest.mark.parametrize("source", ["rtsp://camera/1", "usb:0"])
def test_an_encoder_that_codes_one_picture_in_several_ways_is_frozen_all_the_same(source):
    """The key picture and the ones after it differ by a few levels, over and over; so do a USB camera's quantisers."""
    gate = Gate(config(source, frozen_after_s=2))
    coded = [np.full((HEIGHT, WIDTH), 90 + step, np.uint8) for step in (0, 1, 2, 2, 2)]
    admissions = [gate.admit(frame(n / 10, n / 10, luma=coded[n % 5], noise=False), n / 10) for n in range(60)]
    assert admissions.index("frozen") == 23  # the third is the last one new
    assert set(admissions[23:]) == {"frozen"}


def test_a_usb_driver_that_gives_its_buffers_out_in_turn_is_frozen():
    """A ring of eight pictures that differ; one that is new each time thaws it."""
    gate = Gate(config("usb:0", frozen_after_s=1))
    ring = [frame(luma=np.full((HEIGHT, WIDTH), 90 + step, np.uint8)).planes[0] for step in range(8)]
    admissions = [gate.admit(frame(n / 10, luma=ring[n % 8], noise=False), n / 10) for n in range(40)]
    assert set(admissions[18:]) == {"frozen"}
    assert {gate.admit(frame(4 + n / 10), 4 + n / 10) for n in range(30)} == {"admitted"}


def recoded(n, seed=3):
    """A picture with detail, as an encoder codes it for the n-th time: no two alike, by 2 levels at most."""
    scene = np.random.default_rng(seed).integers(60, 200, (HEIGHT, WIDTH), np.uint8)
    return scene + np.random.default_rng(100 + n).integers(0, 3, scene.shape, np.uint8)


def levelled(source="rtsp://camera/1", rois=((0, 0, 64, 48),), level=0.5):
    return config(source, rois, frozen_after_s=2, frozen_level=level, max_age_ms=60_000)


def played(gate, lumas, start=0):
    """How the gate takes pictures of a camera at 10 fps, the first `start` pictures after the beginning."""
    timed = [(n / 10, luma) for n, luma in enumerate(lumas, start)]
    return [gate.admit(frame(t, t, luma=luma.copy(), noise=False), t) for t, luma in timed]


def test_a_frozen_picture_that_is_coded_anew_all_the_time_is_frozen_where_a_level_is_set():
    """Constant bit rate, gradual refresh: nearly every picture is another one, by a byte."""
    gate = Gate(levelled())
    admissions = played(gate, [recoded(n) for n in range(60)])
    assert admissions.index("frozen") == 21
    assert set(admissions[21:]) == {"frozen"}
    moved = recoded(60)
    moved[20:40, 40:60] += 3  # the part has come: a mean of one block differs by more than one level
    assert played(gate, [moved], start=60) == ["admitted"]
    assert played(gate, [recoded(61)], start=61) == ["admitted"], "and it has gone"
    without = Gate(levelled(level=0))
    assert "frozen" not in played(without, [recoded(n) for n in range(60)])


def test_what_moves_little_by_little_is_life():
    """Daylight: each picture is like the one before, but not like the one that moved last."""
    gate = Gate(levelled())
    assert "frozen" not in played(gate, [recoded(0) + n // 10 for n in range(100)])
    assert "frozen" not in played(gate, [recoded(n) + n // 10 for n in range(100, 200)], start=100)


def test_pictures_that_come_back_in_turn_are_frozen_also_where_a_level_is_set():
    """However much they differ."""
    gate = Gate(levelled("usb:0"))
    ring = [np.full((HEIGHT, WIDTH), 90 + 9 * step, np.uint8) for step in range(8)]
    assert set(played(gate, [ring[n % 8] for n in range(60)])[30:]) == {"frozen"}


def test_neither_other_regions_nor_another_level_thaw_a_frozen_encoder():
    gate = Gate(levelled())
    played(gate, [recoded(n) for n in range(50)])
    gate.adopt(levelled(rois=((8, 8, 40, 40), (0, 0, 8, 8))), None)
    assert set(played(gate, [recoded(n) for n in range(50, 100)], start=50)) == {"frozen"}
    gate.adopt(levelled(level=0.6, rois=((0, 0, 32, 32),)), None)
    assert set(played(gate, [recoded(n) for n in range(100, 105)], start=100)) == {"frozen"}
    gate.adopt(levelled(level=0, rois=((0, 0, 32, 32),)), None)
    assert set(played(gate, [recoded(n) for n in range(105, 110)], start=105)) == {"admitted"}


@pytest.mark.parametrize("fmt", ["yuv420p", "yuyv422", "gray", "bgr24"])
@pytest.mark.parametrize("box", [Box(0, 0, 64, 48), Box(7, 5, 33, 9), Box(56, 40, 8, 8)])
def test_a_block_of_every_layout_is_compared(fmt, box):
    """Up to where a region ends, and nothing beside it."""
    shape = {"yuyv422": (HEIGHT, WIDTH // 2, 4), "bgr24": (HEIGHT, WIDTH, 3)}.get(fmt, (HEIGHT, WIDTH))
    columns = WIDTH // shape[1]
    left, right, bottom = box.x // columns, -(-(box.x + box.width) // columns), box.y + box.height

    def picture(at, corner):
        plane = np.full(shape, 100, np.uint8)
        plane[bottom:], plane[:, right:] = 9 * at, 9 * at
        plane[box.y, left] += at  # another picture by one pixel
        plane[bottom - 8 : bottom, right - 8 // columns : right] += corner
        return Frame(fmt, WIDTH, HEIGHT, (plane,), "bt709", False, at, 0.0, "arrival")

    detector = FrostDetector([box], 0.5, 0.9)
    answers = [detector.frozen(picture(at, corner)) for at, corner in enumerate((0, 0, 0, 30, 30))]
    assert answers == [False, True, True, False, True]


def test_other_regions_do_not_thaw_a_frozen_encoder():
    """With them every way of coding the one picture is new once more; what shows more than those has moved."""
    gate = Gate(config(frozen_after_s=2))
    ways = [np.full((HEIGHT, WIDTH), 90 + step, np.uint8) for step in range(16)]
    at = [n / 10 for n in range(80)]
    admissions = [gate.admit(frame(t, t, luma=ways[n % 16], noise=False), t) for n, t in enumerate(at[:50])]
    assert admissions[-1] == "frozen"
    gate.adopt(config(frozen_after_s=2, rois=((16, 16, 32, 32),)), None)
    assert {gate.admit(frame(t, t, luma=ways[n % 16], noise=False), t) for n, t in enumerate(at[50:])} == {"frozen"}
    moving = [np.full((HEIGHT, WIDTH), 10 + step, np.uint8) for step in range(20)]
    for luma in moving:
        luma[16:, 16:] = 90  # nothing moves in the regions looked at before
    gate.adopt(config(frozen_after_s=2, rois=((8, 8, 32, 32),)), None)
    timed = zip(np.arange(8, 10, 0.1), moving, strict=True)
    thawed = [gate.admit(frame(t, t, luma=luma, noise=False), t) for t, luma in timed]
    assert thawed == ["frozen"] * 16 + ["admitted"] * 4


def test_regions_that_change_all_the_time_hide_no_frozen_encoder():
    """Recipes that follow each other faster than `frozen_after_s`, and than all ways of coding a picture are seen."""
    gate = Gate(config(frozen_after_s=10))
    ways = [np.full((HEIGHT, WIDTH), 90 + step, np.uint8) for step in range(5)]
    admissions = []
    for second in range(60):
        if second % 4 == 3:
            gate.adopt(config(frozen_after_s=10, rois=((8 + second % 8, 8, 32, 32),)), None)
        admissions.append(gate.admit(frame(second, second, luma=ways[second % 5], noise=False), second))
    assert set(admissions[:15]) <= {"stale", "admitted"}
    assert set(admissions[15:]) == {"frozen"}


def test_other_regions_of_a_slow_camera_that_lives_are_not_frozen():
    """One picture a second: until so many were seen that an encoder has no more ways, the limit is over."""
    gate = Gate(config(frozen_after_s=3))
    admissions = []
    for second in range(60):
        if second % 20 == 10:
            gate.adopt(config(frozen_after_s=3, rois=((0, 0, 8 + second, 32),)), None)
        admissions.append(gate.admit(frame(second, second), second))
    assert set(admissions[5:]) == {"admitted"}


def test_pictures_that_come_again_after_many_others_are_no_frost():
    """A camera that is tried with a short recording, over and over."""
    gate = Gate(config(frozen_after_s=1))
    loop = [np.full((HEIGHT, WIDTH), 50 + step, np.uint8) for step in range(20)]
    admissions = [gate.admit(frame(n / 10, n / 10, luma=loop[n % 20], noise=False), n / 10) for n in range(90)]
    assert set(admissions[20:]) == {"admitted"}


def test_a_camera_that_comes_back_with_the_same_picture_is_still_frozen():
    gate = Gate(config("conveyor:", frozen_after_s=1))
    assert gate.admit(frame(0.0, noise=False), 0.0) == "admitted"
    gate.restart()
    assert gate.admit(frame(5.0, noise=False), 5.0) == "frozen"
    assert gate.admit(frame(5.1), 5.1) == "admitted"


def test_damaged_frames_neither_thaw_nor_freeze():
    gate = Gate(config("conveyor:", frozen_after_s=1))
    gate.admit(frame(0.0, noise=False), 0.0)
    assert gate.admit(frame(0.6, corrupt=True), 0.6) == "corrupt"
    assert gate.admit(frame(1.2, noise=False), 1.2) == "frozen"


@pytest.mark.parametrize("fmt", ["nv12", "yuv422p", "yuyv422", "gray", "bgr24"])
def test_every_pixel_format_is_compared_inside_the_roi(fmt):
    """A change at the last sampled byte of the ROI counts, one beside the ROI does not."""
    shape = {"yuyv422": (HEIGHT, WIDTH // 2, 4), "bgr24": (HEIGHT, WIDTH, 3)}.get(fmt, (HEIGHT, WIDTH))

    def picture(at, x, value):
        plane = np.zeros(shape, np.uint8)
        plane[8, x // 2 if fmt == "yuyv422" else x] = value
        return Frame(fmt, WIDTH, HEIGHT, (plane,), "bt709", False, at, 0.0, "arrival")

    inside = FrostDetector([Box(8, 8, 16, 16)], 0.5)
    assert not any(inside.frozen(picture(n, 23, n)) for n in range(5))
    beside = FrostDetector([Box(8, 8, 16, 16)], 0.5)
    assert [beside.frozen(picture(n, 24, n)) for n in range(3)] == [False, True, True]


def test_a_decoders_padded_rows_are_compared_without_their_padding():
    detector = FrostDetector([Box(32, 0, 32, 32)], 0.5)
    rng = np.random.default_rng(2)
    answers = []
    for n in range(3):
        memory = rng.integers(0, 255, (HEIGHT, 128), np.uint8)
        memory[:, :WIDTH] = 7
        answers.append(detector.frozen(frame(n * 1.0, luma=memory[:, :WIDTH], noise=False)))
    assert answers == [False, True, True]
