"""The bench on a tiny clip: every row is really measured. No speed is asserted; that is for people to read."""

import io
import math
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from colour_bundle import COLOURS, colour_bundle
from rich.console import Console

from inspectd.bench import BenchOptions, BenchResult, run_bench
from inspectd.bench.clip import make_clip
from inspectd.bench.end_to_end import daemon_run, live_latency, trigger_latency
from inspectd.bench.measure import Clip, Sample, as_frame
from inspectd.bench.result import make_row
from inspectd.capture.picture import PictureReader
from inspectd.config import EngineConfig
from inspectd.errors import InspectdError, UsageError
from inspectd.frame import Box

# Frames enough that the daemon's CPU time, in the kernel's hundredths of a second, is not rounded to nothing.
SMALL = BenchOptions(frames=48, warm_up=8, repeats=1, width=320, height=240, box=Box(33, 21, 201, 200), live_frames=12)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return colour_bundle(tmp_path_factory.mktemp("bench") / "bundle")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    clip = Clip(tmp_path_factory.mktemp("clip") / "clip.mp4", SMALL.box, SMALL.warm_up, SMALL.frames)
    make_clip(clip.path, clip.total, SMALL.width, SMALL.height, SMALL.fps)
    return clip


@pytest.fixture(scope="module")
def run(bundle):
    """The whole bench, once: its result and what it printed."""
    printed = io.StringIO()
    result = run_bench(replace(SMALL, bundle=bundle.path), Console(file=printed, width=160))
    return result, printed.getvalue()


@pytest.mark.timeout(300)  # eager torch crawls where many processes share few cores
def test_every_row_counts_every_frame_after_the_warm_up(run):
    result, _ = run
    whats = [row.what for row in result.rows]
    assert whats[:2] == ["decode", "crop"]
    for what in ("engine", "plain loop", "two threads", "daemon"):
        assert what in whats
    for row in result.rows:
        assert row.frames == SMALL.frames, row
        assert math.isfinite(row.fps) and row.fps > 0, row  # noqa: PT018 - one fact
        assert row.fps_range[0] <= row.fps <= row.fps_range[1], row
        assert row.cpu_ms >= 0, row


def test_each_engine_that_the_machine_has_is_measured_and_the_others_are_named_with_the_reason(run):
    result, _ = run
    assert result.row("engine", "f32") is not None
    assert any("int8" in reason and "openvino-int8" in reason for reason in result.skipped)
    served = {row.precision for row in result.rows if row.what == "daemon"}
    engines = {row.precision for row in result.rows if row.what == "engine"}
    assert served == (engines - {"f32"} or engines)


def test_ratios_are_to_the_plain_loop_and_to_the_two_threads_of_the_same_precision(run):
    result, _ = run
    plain = result.row("plain loop", "f32")
    for row in result.rows:
        if row.what == "two threads" or row.what.startswith("daemon"):
            assert row.times_plain == pytest.approx(row.fps / plain.fps)
            assert row.times_limit == pytest.approx(row.fps / result.row("two threads", row.precision).fps)
        else:
            assert row.times_plain is None
            assert row.times_limit is None


def test_latency_covers_every_live_frame(run):
    latency = run[0].latency
    assert latency.frames == SMALL.live_frames
    assert 0 < latency.p50_ms <= latency.p99_ms <= latency.max_ms
    assert set(latency.stages_ms) == {"decode", "queue", "engine"}
    assert 0 < latency.judged <= latency.frames


def test_the_table_shows_every_row_and_the_json_holds_the_same_figures(run):
    result, printed = run
    for row in result.rows:
        assert row.what in printed
    for word in ("CPU-ms/frame", "warm-up", "p99", "skipped", result.bundle):
        assert word in printed
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


def test_without_torch_the_plain_loop_is_skipped_and_said_so(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run_bench(replace(SMALL, bundle=bundle.path, live_frames=0), Console(file=io.StringIO()))
    assert result.row("plain loop", "f32") is None
    assert any(reason.startswith("plain loop: torch is not installed") for reason in result.skipped)
    daemon = next(row for row in result.rows if row.what == "daemon")
    assert daemon.times_plain is None
    assert daemon.times_limit is not None
    assert result.latency is None


def test_the_daemon_is_measured_over_exactly_the_frames_of_the_clip(bundle, clip):
    sample = daemon_run(clip, bundle, EngineConfig(device="cpu"))
    assert sample.frames == clip.frames
    assert sample.wall_s > 0


def test_a_daemon_that_ends_before_every_frame_has_its_verdict_fails_the_bench(bundle, clip):
    longer = replace(clip, frames=clip.frames + 5)
    with pytest.raises(InspectdError, match=r"the daemon ended with 0 after 56 of 61 verdicts"):
        daemon_run(longer, bundle, EngineConfig(device="cpu"))


def test_a_daemon_that_does_not_start_fails_the_bench_with_its_last_words(bundle, clip):
    outside = replace(clip, box=Box(0, 0, 5000, 200))
    with pytest.raises(InspectdError, match=r"ended with 2 after 0 of 56 verdicts: .*5000"):
        live_latency(outside, bundle, EngineConfig(device="cpu"))


def test_an_engine_whose_scores_are_no_numbers_fails_the_bench(clip, tmp_path, monkeypatch):
    """It is quick, and judges nothing; with frames as with triggers."""
    monkeypatch.setitem(COLOURS, "stain", (math.nan, 0, 0))
    broken, config = colour_bundle(tmp_path / "bundle"), EngineConfig(device="cpu")
    with pytest.raises(InspectdError, match="the engine failed, or its scores are no numbers"):
        daemon_run(clip, broken, config)
    with pytest.raises(InspectdError, match="the engine failed, or its scores are no numbers"):
        trigger_latency(clip, broken, config, (SMALL.width, SMALL.height), SMALL.fps, triggers=1)


def test_the_environments_daemon_settings_do_not_reach_the_measured_daemon(bundle, clip, monkeypatch):
    monkeypatch.setenv("INSPECTD__MODEL__BUNDLE", "/nonexistent")
    assert daemon_run(clip, bundle, EngineConfig(device="cpu")).frames == clip.frames


def test_the_clip_is_what_a_camera_sends(tmp_path):
    """Main profile, no B-frames, a key frame every 60, tagged BT.709; it moves, and is neither flat nor noise."""
    path = tmp_path / "clip.mp4"
    make_clip(path, 70, 640, 480, 30)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.profile == "Main"
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [index for index, packet in enumerate(packets) if packet.is_keyframe] == [0, 60]
        assert all(packet.pts == packet.dts for packet in packets)
        wanted = 6e6 * (640 * 480) / (1920 * 1080)
        assert 0.5 * wanted < sum(packet.size for packet in packets) * 8 / (70 / 30) < 2 * wanted
    pictures = list(Clip(path, Box(0, 0, 64, 64), 0, 70).pictures())
    assert len(pictures) == 70
    assert (pictures[0].colorspace, pictures[0].color_range) == (Colorspace.ITU709, ColorRange.MPEG)
    first, second = (as_frame(pictures[index]).planes[0].astype(float) for index in (20, 21))
    assert first.std() > 20
    assert np.abs(first - second).mean() > 1
    # Neighbouring pixels are alike, as in pictures and not in noise.
    assert np.corrcoef(first[:, :-1].ravel(), first[:, 1:].ravel())[0, 1] > 0.8


def test_the_hand_written_loop_sees_the_same_frame_as_the_daemon(clip):
    """Its few lines of plane access agree with the capture code, so that both crop the same pixels."""
    picture = next(clip.pictures())
    ours, theirs = as_frame(picture), PictureReader("clip").read(picture)
    assert (ours.format, ours.matrix, ours.full_range) == (theirs.format, theirs.matrix, theirs.full_range)
    for mine, other in zip(ours.planes, theirs.planes, strict=True):
        assert (mine == other).all()


def test_rows_are_medians_of_the_repeats():
    row = make_row("decode", None, [Sample(10, 1.0, 0.5), Sample(10, 5.0, 0.1), Sample(10, 2.0, 0.2)])
    assert row.fps == 5.0
    assert row.fps_range == (2.0, 10.0)
    assert row.cpu_ms == pytest.approx(20)


def test_options_that_cannot_be_measured_are_refused():
    with pytest.raises(UsageError, match="does not fit"):
        BenchOptions(box=Box(1500, 0, 800, 800))
    with pytest.raises(UsageError, match="at least"):
        BenchOptions(frames=3)


def test_without_a_bundle_and_without_torch_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "inspectd.model.export", None)
    with pytest.raises(UsageError, match="--bundle"):
        run_bench(SMALL, Console(file=io.StringIO()))
