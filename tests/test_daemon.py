"""The whole daemon as a user runs it: real files, real sockets, real signals."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from colour_bundle import COLOURS, VERDICTS, colour_bundle
from daemon_process import DaemonProcess, Subscriber
from faulty_camera import FaultyCamera
from journal_kit import eventually
from line import running_daemon
from media import write_clip

KINDS = list(COLOURS)
COUNT = 600


def kind_of(index, salt=0):
    """A fixed pseudo-random sequence of kinds: the truth of frame `index`."""
    return KINDS[(index * 7919 + index // 3 + salt * 31) % len(KINDS)]


def colour_picture(size, salts, boxes):
    """Grey, with each box in the colour of its kind at that index."""

    def picture(index):
        rgb = np.full((size[1], size[0], 3), 128, np.uint8)
        for salt, (x, y, width, height) in zip(salts, boxes, strict=True):
            rgb[y - 8 : y + height + 8, x - 8 : x + width + 8] = COLOURS[kind_of(index, salt)]
        return rgb

    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the colour bundle and a clip of 600 frames, one kind per frame."""
    folder = tmp_path_factory.mktemp("daemon")
    colour_bundle(folder / "bundle")
    write_clip(
        folder / "clip.mp4",
        COUNT,
        size=(320, 240),
        picture=colour_picture((320, 240), [0], [(100, 60, 120, 120)]),
        barcode=False,
    )
    return folder


def config_text(cameras, extra=""):
    blocks = [
        '[model]\nbundle = "bundle"',
        '[publish]\nbind = "tcp://127.0.0.1:*"',
        '[control]\nbind = "tcp://127.0.0.1:*"',
        '[http]\nbind = "127.0.0.1:0"',
        '[log]\nformat = "json"',
        extra,
    ]
    for name, source, keys, rois in cameras:
        blocks.append(f'[[cameras]]\nname = "{name}"\nsource = "{source}"\n{keys}\n')
        blocks += [f'[[cameras.rois]]\nname = "{roi}"\nbox = {list(box)}\n' for roi, box in rois.items()]
    return "\n".join(blocks)


def write_config(folder, name, cameras, extra=""):
    path = folder / f"{name}.toml"
    path.write_text(config_text(cameras, extra))
    return path


PART = {"part": (100, 60, 120, 120)}


def run_cli(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "inspectd", *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )


def counters(text, name):
    """Samples of a metric as {label string: value}."""
    return {m[1]: float(m[2]) for m in re.finditer(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)}


def unbalanced(text):
    """Cameras and ROIs of a scrape for which captured + without_frame != verdicts + dropped + in flight."""
    captured = counters(text, "inspectd_frames_captured_total")
    wrong = []
    for labels, in_flight in counters(text, "inspectd_frames_in_flight").items():
        camera = re.search(r'camera="([^"]*)"', labels)[0]
        roi = re.search(r'roi="([^"]*)"', labels)[0]

        def total(name, camera=camera, roi=roi):
            return sum(v for k, v in counters(text, name).items() if camera in k and roi in k)

        settled = total("inspectd_verdicts_total") + total("inspectd_frames_dropped_total")
        begun = captured[camera] + total("inspectd_verdicts_without_frame_total")
        if begun != settled + in_flight:
            wrong.append((labels, begun, settled, in_flight))
    return wrong


def test_every_frame_of_a_recording_gets_the_right_verdict(folder):
    """As many verdicts as frames, each right, in order, without a gap; then a clean end by itself."""
    config = write_config(folder, "file", [("line", "file:clip.mp4", "", PART)])
    # The file waits for nobody: subscribe through a bound port known before the start.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config.write_text(config.read_text().replace("tcp://127.0.0.1:*", f"tcp://127.0.0.1:{port}", 1))
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber, DaemonProcess(config) as daemon:
        subscriber.until(lambda m: m["topic"].startswith("heartbeat/") and m["state"] == "fault", 40)
        assert daemon.process.wait(10) == 0
    live = {m["frame"]["index"]: m for m in subscriber.verdicts if not m["replayed"]}
    # The subscription may take effect after the first frames; from the first one on nothing is missing.
    assert sorted(live) == list(range(min(live), COUNT))
    assert len(live) >= COUNT // 4
    assert [m["seq"] for m in live.values()] == [index + 1 for index in live]
    for index, message in live.items():
        assert message["verdict"] == VERDICTS[kind_of(index)], (index, message)
        assert message["label"] == kind_of(index)
        assert message["frame"]["pts"] == pytest.approx(index / 30, abs=0.002)
    last = daemon.wait_for_log("stopped")
    assert last["in_flight"] == 0


def test_two_cameras_three_rois_all_right_fair_and_balanced_at_every_scrape(folder):
    """Different sizes and pixel formats at once; each verdict is its own ROI's, no camera starves."""
    left, right, only = (40, 40, 96, 96), (401, 203, 160, 120), (64, 48, 128, 128)
    write_clip(
        folder / "wide.mp4",
        90,
        size=(640, 480),
        picture=colour_picture((640, 480), [1, 2], [left, right]),
        barcode=False,
        matrix="bt709",
    )
    write_clip(
        folder / "small.avi",
        90,
        size=(320, 240),
        codec="mjpeg",
        pix_fmt="yuvj422p",
        picture=colour_picture((320, 240), [3], [only]),
        barcode=False,
    )
    config = write_config(
        folder,
        "two",
        [
            ("wide", "file:wide.mp4?loop=1&realtime=1", "max_age_ms = 2000", {"left": left, "right": right}),
            ("small", "file:small.avi?loop=1&realtime=1", "max_age_ms = 2000", {"only": only}),
        ],
    )
    with DaemonProcess(config) as daemon:
        daemon.started()
        with Subscriber(daemon.endpoint, ["verdict/"]) as subscriber:
            subscriber.until(lambda m: not m["replayed"])
            scrapes = 0
            until = time.monotonic() + 4
            while time.monotonic() < until:
                assert unbalanced(daemon.scrape()) == []
                scrapes += 1
                subscriber.for_seconds(0.02)
            assert scrapes >= 20
            assert daemon.status_code("/readyz") == 200
            assert daemon.stop() == 0
    salts = {("wide", "left"): 1, ("wide", "right"): 2, ("small", "only"): 3}
    counts = dict.fromkeys(salts, 0)
    for message in subscriber.verdicts:
        if message["replayed"] or message["reason"] in ("overload", "stale"):
            continue
        key = message["camera"], message["roi"]
        counts[key] += 1
        truth = kind_of(message["frame"]["index"] % 90, salts[key])
        assert message["verdict"] == VERDICTS[truth], message
        assert message["label"] == truth
    assert min(counts.values()) > 60
    assert max(counts.values()) - min(counts.values()) <= 0.2 * max(counts.values())


def test_sigterm_under_load_publishes_what_is_in_flight(folder):
    """Killed in full flight: every captured frame was published, the stream ends with what heartbeat says."""
    config = write_config(folder, "load", [("line", "file:clip.mp4?loop=1", "", PART)])
    with DaemonProcess(config) as daemon:
        daemon.started()
        with Subscriber(daemon.endpoint) as subscriber:
            subscriber.until(lambda m: m["topic"].startswith("verdict/") and m["seq"] > 50)
            started = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            subscriber.until(lambda m: m["topic"] == "heartbeat/" and m["state"] == "fault")
            assert daemon.process.wait(10) == 0
            assert time.monotonic() - started < 5
    seqs = [m["seq"] for m in subscriber.verdicts if not m["replayed"]]
    assert seqs == list(range(seqs[0], seqs[-1] + 1))
    newest = [m for m in subscriber.messages if m["topic"] == "heartbeat/"][-1]["topics"]
    assert newest["verdict/line/part/"] == seqs[-1]
    assert daemon.wait_for_log("stopped")["in_flight"] == 0
    assert daemon.wait_for_log("stopped")["took_s"] < 3


def test_a_second_signal_ends_at_once(folder):
    """Whoever presses Ctrl-C twice means it."""
    config = write_config(folder, "twice", [("line", "conveyor:", "", {"part": (400, 200, 300, 300)})])
    with DaemonProcess(config) as daemon:
        daemon.started()
        # A subscriber that does not read keeps the clean stop waiting for its messages.
        daemon.process.send_signal(signal.SIGINT)
        daemon.wait_for_log("stopping")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(5) in (0, -signal.SIGINT)


def test_a_camera_that_is_away_does_not_stop_the_others(folder):
    """One answers nothing: its status and metric say so; the other's verdicts flow; readyz says which."""
    config = write_config(
        folder,
        "away",
        [
            ("gone", "rtsp://user:hunter2@127.0.0.1:1/x", "", PART),
            ("here", "file:clip.mp4?loop=1&realtime=1", "", PART),
        ],
    )
    with DaemonProcess(config) as daemon:
        daemon.started()
        with Subscriber(daemon.endpoint) as subscriber:
            fault = subscriber.until(lambda m: m["topic"] == "status/gone/" and m["state"] == "fault")
            assert fault["reason"] == "refused"
            subscriber.until(lambda m: m["topic"] == "verdict/here/part/" and not m["replayed"])
            text = daemon.scrape()
            assert counters(text, "inspectd_camera_up") == {'camera="gone"': 0, 'camera="here"': 1}
            assert daemon.status_code("/healthz") == 200
            assert daemon.status_code("/readyz") == 503
        assert daemon.stop() == 0
    assert "hunter2" not in "\n".join(daemon.raw) + text


def test_a_scrape_finds_a_main_loop_that_hangs(folder, monkeypatch):
    """A loop that does not turn cannot say so itself."""
    config = write_config(folder, "hung", [("line1", "rtsp://camera/", "", {"part": (0, 0, 80, 80)})])
    with running_daemon(monkeypatch, config, FaultyCamera(fps=20)) as daemon:

        def is_ready():
            return counters(daemon.metrics.exposition("")[0].decode(), "inspectd_ready")[None] == 1

        eventually(is_ready)
        go_on = threading.Event()
        monkeypatch.setattr(daemon.station.cameras[0], "supervise", go_on.wait)
        try:
            eventually(lambda: not is_ready(), 5)
        finally:
            go_on.set()


def test_torch_is_not_loaded_and_memory_stays_small(folder):
    """The CPU engine runs without torch, in less than 300 MB."""
    config = write_config(folder, "small", [("line", "file:clip.mp4?loop=1&realtime=1", "", PART)])
    with DaemonProcess(config) as daemon:
        daemon.started()
        with Subscriber(daemon.endpoint, ["verdict/"]) as subscriber:
            subscriber.until(lambda m: m["seq"] > 30)
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        assert "libopenvino" in maps
        assert "libtorch" not in maps
        assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 300_000
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace('"bundle"', '"none"'), "no such bundle; make one with: inspectd train"),
        (lambda text: text.replace("clip.mp4", "nothing.mp4"), "nothing.mp4"),
        (lambda text: text.replace("clip.mp4", "text.mp4"), "text.mp4"),
        (lambda text: text.replace("clip.mp4", "zero.mp4"), "zero.mp4"),
        (lambda text: text.replace("120, 120]", "400, 400]"), "[100, 60, 400, 400] lies outside the 320x240"),
        (lambda text: text.replace("[log]", "[log]\nlevle = 1"), "log.levle: unknown key"),
        (lambda text: text + "\n[decision.fail]\nrust = 0.5\n", "decision.fail.rust: no defect class"),
        (lambda text: text.replace("[log]", '[engine]\nprecision = "int8"\n[log]'), "openvino-int8"),
        (lambda text: text.replace("[log]", '[engine]\ndevice = "cuda"\n[log]'), "engine.device"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_what_is_wrong_before_the_start_is_one_line_and_exit_2(folder, command, change, expected):
    """Nothing starts; stderr is one line that names what to change."""
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "zero.mp4").write_bytes(b"")
    config = write_config(folder, "wrong", [("line", "file:clip.mp4", "", PART)])
    config.write_text(change(config.read_text()))
    arguments = [command, "-c", config]
    if command == "check" and expected == "openvino-int8":
        arguments.append("--probe")  # check alone makes no engine
    result = run_cli(*arguments)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("inspectd: ")
    assert expected in lines[0]


@pytest.mark.parametrize("section", ["publish", "control", "http"])
def test_a_port_in_use_is_named(folder, section):
    """Exit 2 with the key and the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = write_config(folder, "port", [("line", "file:clip.mp4", "", PART)])
        text = config.read_text()
        free = "127.0.0.1:0" if section == "http" else "127.0.0.1:*"
        before, after = text.split(f"[{section}]")
        config.write_text(f"{before}[{section}]{after.replace(free, address, 1)}")
        result = run_cli("run", "-c", config)
    assert result.returncode == 2
    assert f"inspectd: {section}.bind: " in result.stderr
    assert address in result.stderr


def test_a_tampered_bundle_is_refused(folder, tmp_path):
    """One flipped byte in the weights: exit 2, the file named."""
    colour_bundle(tmp_path / "bundle")
    weights = tmp_path / "bundle" / "openvino" / "model.bin"
    data = bytearray(weights.read_bytes())
    data[0] ^= 1
    weights.write_bytes(data)
    config = write_config(tmp_path, "tampered", [("line", "conveyor:", "", PART)])
    result = run_cli("run", "-c", config)
    assert result.returncode == 2
    assert "model.bin: SHA-256 is" in result.stderr


def test_check_probe_reports_cameras_and_model(folder):
    """Exit 1 when a camera does not answer, with the others' findings printed all the same."""
    config = write_config(
        folder,
        "probe",
        [("gone", "rtsp://127.0.0.1:1/x", "", PART), ("here", "file:clip.mp4", "", PART)],
        '[recipes.lid]\nrois = [{ camera = "here", name = "lid", box = [10, 20, 64, 64] }]\n',
    )
    result = run_cli("check", "-c", config, "--probe")
    assert result.returncode == 1
    assert "ok    model" in result.stdout
    assert "FAIL  camera gone: refused" in result.stdout
    assert "ok    camera here: 320x240 yuv420p" in result.stdout
    assert "; part [100, 60, 120, 120]\n" in result.stdout
    result = run_cli("check", "-c", config, "--probe", "--recipe", "lid")
    assert "; lid [10, 20, 64, 64]\n" in result.stdout


def test_snapshot_draws_the_rois(folder, tmp_path):
    """One PNG per camera, of the frame's size, with the ROI's rectangle in it."""
    import cv2

    config = write_config(
        folder,
        "snap",
        [("line", "file:clip.mp4", "", PART)],
        '[recipes.lid]\nrois = [{ camera = "line", name = "lid", box = [10, 20, 64, 64] }]\n',
    )
    result = run_cli("snapshot", "-c", config, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / "line.png")), cv2.COLOR_BGR2RGB)
    assert picture.shape == (240, 320, 3)
    assert tuple(picture[60, 160]) == (255, 180, 0)
    assert np.abs(picture[120, 160].astype(int) - COLOURS[kind_of(0)]).max() < 12
    config.write_text('recipe = "lid"\n' + config.read_text())
    result = run_cli("snapshot", "-c", config, "-o", tmp_path / "out")
    assert result.stdout.endswith("; lid [10, 20, 64, 64]\n")


def test_schemas_are_json_schema():
    """Both print valid JSON with the fields of the contract."""
    verdict = json.loads(run_cli("schema", "verdict").stdout)
    assert {"schema", "boot_id", "seq", "replayed", "verdict", "reason", "latency_ms"} <= set(verdict["properties"])
    assert "cameras" in json.loads(run_cli("schema", "config").stdout)["properties"]
