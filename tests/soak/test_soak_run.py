"""The soak's own parts, and a minute of it; hours are run by `make test-soak`."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from flaky_link import FlakyLink
from report import write_report
from rtsp_server import missing
from sampler import Metrics
from schedule import QUIET, Kind, plan
from torments import ALL
from trends import trend
from watcher import Watcher
from works import Scene

HERE = Path(__file__).parent
KINDS = [torment.kind for torment in ALL]
HOUR_S = 3600.0


def test_a_schedule_is_the_seeds_alone():
    """The same seed gives the same faults at the same moments, another one others."""
    assert plan(7, HOUR_S, KINDS) == plan(7, HOUR_S, KINDS)
    assert plan(7, HOUR_S, KINDS) != plan(8, HOUR_S, KINDS)


def test_a_schedule_has_every_kind_and_leaves_both_ends_in_peace():
    """In two hours each kind comes several times; no fault lies in the first or the last tenth, none within another."""
    planned = plan(1, 2 * HOUR_S, KINDS)
    times = {kind.name: sum(one.kind == kind.name for one in planned) for kind in KINDS}
    assert min(times.values()) >= 5
    assert planned[0].at_s >= QUIET * 2 * HOUR_S
    assert planned[-1].at_s + planned[-1].lasts_s <= (1 - QUIET) * 2 * HOUR_S
    assert all(a.at_s + a.lasts_s < b.at_s for a, b in pairwise(planned))


def test_a_short_schedule_keeps_to_the_least_that_a_fault_needs():
    """A minute has a few faults, none shorter than its kind can be."""
    kinds = [Kind("long", 4, 60), Kind("short", 1, 1)]
    planned = plan(1, 72, kinds)
    assert len(planned) >= 4
    assert all(one.lasts_s >= (4 if one.kind == "long" else 1) for one in planned)


def grown(per_day, noise, seed=0, teeth=0.0, step=0.0):
    """Memory over two hours, a sample a second: a slope, noise, what comes and goes, and one step that stays."""
    dice = np.random.default_rng(seed)
    times = np.arange(0, 2 * HOUR_S)
    warming = 30 * np.exp(-times / 150)
    kept = teeth * ((times // 700) % 2) + step * (times > 0.4 * times[-1])
    values = 200 - warming + per_day * times / 86400 + dice.normal(0, noise, len(times)) + kept
    return trend("memory", "MB", times, values, bound=8, since_s=0.1 * 2 * HOUR_S)


@pytest.mark.parametrize("kept", [{}, {"teeth": 4.0}, {"step": 6.0}])
def test_what_stays_is_zero_within_noise(kept):
    """Noise, teeth that come and go, a step that does not repeat: no growth; nor is what happens while it warms up."""
    assert all(grown(0, 1.0, seed, **kept).zero for seed in range(20))


@pytest.mark.parametrize("kept", [{}, {"step": 6.0}])
def test_a_leak_of_one_megabyte_an_hour_is_found(kept):
    """Nineteen times of twenty at least, in noise as large as the daemon's, and beside a step as well."""
    found = [grown(24, 1.0, seed, **kept) for seed in range(20)]
    assert sum(not one.zero for one in found) >= 19


def test_a_slope_is_what_it_was_made_with():
    """In megabytes a day, within its own error."""
    found = [grown(24, 1.0, seed).slope for seed in range(20)]
    assert np.mean([one.value for one in found]) == pytest.approx(24, abs=2)
    assert sum(one.low <= 24 <= one.high for one in found) >= 18


def test_what_never_changes_has_no_slope_and_no_error():
    """Threads, say: every block is the same."""
    found = trend("threads", "", np.arange(7200), np.full(7200, 17), bound=1, since_s=720)
    assert (found.slope.value, found.slope.error, found.zero) == (0, 0, True)


def test_a_few_samples_are_no_trend():
    """Nothing is said of what cannot be known."""
    assert trend("memory", "MB", [0, 1, 2], [1, 2, 3], bound=8, since_s=0) is None


SCRAPE = """
inspectd_frames_captured_total{camera="a"} 10.0
inspectd_verdicts_without_frame_total{camera="a",roi="p"} 1.0
inspectd_verdicts_total{camera="a",roi="p",verdict="pass",reason=""} 6.0
inspectd_verdicts_total{camera="a",roi="p",verdict="no_result",reason="stale"} 2.0
inspectd_frames_dropped_total{camera="a",roi="p",reason="late"} 2.0
inspectd_frames_in_flight{camera="a",roi="p"} 1.0
"""


def test_books_that_do_not_balance_are_seen():
    """One verdict too few, and the account is named."""
    assert Metrics(SCRAPE).unbalanced() == []
    (wrong,) = Metrics(SCRAPE.replace("6.0", "5.0")).unbalanced()
    assert "'camera': 'a'" in wrong


@pytest.fixture
def watched():
    """A watcher without a daemon, and what it finds broken."""
    broken = []
    scene = Scene(slot_s=0.2, slots=40, salt=0, margin_s=0.01)
    watcher = Watcher("tcp://127.0.0.1:1", {"street": scene}, (), lambda promise, _: broken.append(promise))
    return watcher, scene, broken


def verdict(seq, pts, kind, verdict="pass", published_s=0.0):
    return {
        "seq": seq,
        "replayed": False,
        "camera": "street",
        "roi": "part",
        "verdict": verdict,
        "reason": None,
        "label": kind,
        "trigger_id": None,
        "frame": {"pts": pts},
        "latency_ms": {"total": 1.0},
        "published_at": f"2030-01-01T00:00:{published_s:09.6f}Z",
    }


def first(scene, kind):
    """Stream time at which that kind is in view."""
    return next(slot * 0.2 for slot in range(40) if scene.kind(slot * 0.2) == kind)


def test_a_wrong_pass_is_broken_and_a_right_one_is_not(watched):
    """Held against what the picture of that stream time shows."""
    watcher, scene, broken = watched
    watcher._take(0.0, "verdict/street/part/", verdict(1, first(scene, "good"), "good"))
    assert broken == []
    watcher._take(0.1, "verdict/street/part/", verdict(2, first(scene, "scratch"), "good"))
    assert broken == ["no wrong pass"]


def test_a_pass_that_comes_late_is_stale_even_when_its_picture_was_good(watched):
    """Two seconds behind the freshest picture of its connection."""
    watcher, scene, broken = watched
    at = first(scene, "good")
    watcher._take(0.0, "verdict/street/part/", verdict(1, at, "good", published_s=at + 1))
    watcher._take(8.0, "verdict/street/part/", verdict(2, at + 8, "good", published_s=at + 8 + 1 + 2))
    watcher._take(9.0, "verdict/street/part/", verdict(3, at, "good", published_s=at + 20))  # another connection
    assert broken == ["no stale pass"]


def test_a_gap_and_a_repeat_are_seen(watched):
    """Every message once and in order."""
    watcher, scene, broken = watched
    at = first(scene, "good")
    for seq in (1, 2, 4, 4):
        watcher._take(0.0, "verdict/street/part/", verdict(seq, at, "good"))
    assert broken == ["every message arrives", "no message comes twice"]


def test_a_link_takes_a_stream_apart_and_loses_nothing_while_it_is_open():
    """Replies and interleaved frames come through as they were, however the network cuts them; spoilt ones do not."""
    dice = np.random.default_rng(0)
    frames = [bytes([36, 0]) + size.to_bytes(2, "big") + dice.bytes(size) for size in (300, 40, 1400, 900)]
    reply = b"RTSP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nv=0\r\n\n"
    stream = reply + b"".join(frames)
    link = FlakyLink(1, seed=0, loss=1.0)
    try:
        for cut in (1, 7, 500, len(stream)):
            damage = link.damage()
            assert b"".join(damage.through(stream[i : i + cut]) for i in range(0, len(stream), cut)) == stream
        link.set_mode("lossy")
        left = link.damage().through(stream)
        assert left.startswith(reply)
        assert frames[1] in left  # too short to be cut
        assert not any(frame in left for frame in frames if len(frame) > 200)
    finally:
        link.close()


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_minute_of_it_keeps_every_promise_but_those_that_need_hours(tmp_path):
    """The command runs, injects faults, and writes its three reports; nothing passes wrongly, the books balance."""
    command = [
        sys.executable,
        HERE / "run.py",
        "--hours",
        "0.02",
        "--seed",
        "5",
        "--belt-fps",
        "10",
        "-o",
        tmp_path / "soak",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1000)
    report = json.loads((tmp_path / "soak" / "report.json").read_text())
    # Of a minute beside other tests no time says anything; what must never be is as true there as anywhere.
    times = ("p99", "in time", "away", "evidence is kept again", "heartbeat")
    assert [line for line in report["broken"] if not any(word in line for word in times)] == [], (
        done.stdout + done.stderr
    )
    assert report["end"]["exit_code"] == 0
    assert report["end"]["judged"]["right pass"] > 0
    assert report["end"]["triggers"]["accepted"] > 0
    assert len(report["faults"]) >= 3
    assert (tmp_path / "soak" / "report.png").stat().st_size > 20_000
    page = (tmp_path / "soak" / "report.md").read_text()
    assert "## Latency" in page
    assert report["faults"][0]["kind"] in page


def test_a_killed_soak_is_reported_from_what_it_left(tmp_path):
    """The page of half a soak, with a last line that was cut, names what was broken and says that it is none whole."""
    meta = {"length_s": 72.0, "seed": 1, "load": 0.9, "belt_fps": 10, "cpus": [0], "machine": "m", "planned": []}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    sample = {
        "t": 1.0,
        "fault": None,
        "rss_kb": 1000,
        "anon_kb": 900,
        "threads": 3,
        "fds": 4,
        "children": 0,
        "cpu_s": 1.0,
        "metrics": None,
        "verdicts": {"belt1/pass/": 3},
        "longest_beat_s": 0.5,
        "yardstick_ms": 1.0,
    }
    lines = [json.dumps(sample | {"t": float(second)}) for second in range(30)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + '\n{"t": 30.0, "fau')
    (tmp_path / "broken.jsonl").write_text(
        '{"at": 0, "promise": "no wrong pass", "detail": "street: scratch passed"}\n'
    )
    broken = write_report(tmp_path)
    assert broken == ["no wrong pass: broken 1 times, first: street: scratch passed"]
    assert "not at its end" in (tmp_path / "report.md").read_text()
