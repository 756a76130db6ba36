"""The files that go onto other people's machines: unit, scrape configuration, alerts, dashboard."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from typing import get_args

import pytest
import unit_sandbox
from fake_line import FakeLine
from prometheus_server import (
    ALERTS,
    DASHBOARD,
    DEPLOY,
    INSTALLED,
    PrometheusServer,
    annotation_expressions,
    dashboard_expressions,
    panels,
)

from inspectd.capture.quality import Quality
from inspectd.daemon import DROPS, VERDICTS
from inspectd.observe.http import HttpServer
from inspectd.observe.ledger import Ledger
from inspectd.observe.line_metrics import EVIDENCE_LOSSES, TRIGGER_RESULTS
from inspectd.observe.metrics import Metrics
from inspectd.verdict.control_schema import ErrorCode
from inspectd.verdict.evidence import EvidenceLoss

needs_prometheus = pytest.mark.skipif(not INSTALLED, reason="needs Debian's prometheus")
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs Debian's systemd")


class Station:
    """A real HttpServer with real Metrics, and a thread that does to them what a daemon would."""

    def __init__(self, cameras, turn):
        rois = [(camera, roi) for camera, names in cameras.items() for roi in names]
        self.ledger = Ledger(rois)
        self.metrics = Metrics(self.ledger, list(cameras), verdicts=VERDICTS, drops=DROPS)
        for camera, roi in rois:
            self.metrics.expect_defects(camera, roi, ["scratch", "dent"])
        self.metrics.show_models(
            {"0123abc": {"architecture": "resnet18", "engine": "openvino", "device": "cpu", "precision": "int8"}}
        )
        self.metrics.show_recipe("lid", "4567def")
        self._turn = turn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._server = HttpServer("127.0.0.1:0", self.metrics, lambda: (True, {}), lambda: (True, {}))

    def _run(self):
        for count in itertools.count():
            self._turn(self, count)
            if self._stop.wait(0.02):
                return

    def __enter__(self):
        self._server.start()
        self._thread.start()
        self.target = self._server.url.removeprefix("http://")
        return self

    def __exit__(self, *exc):
        self._stop.set()
        self._thread.join(10)
        assert self._server.stop(5)


def healthy(station, count):
    """Two cameras run free, one of them with parts, two are triggered; journal, evidence and golden parts are used."""
    station.metrics.ask_ready(lambda: True)
    station.metrics.set_subscribers(2)
    for camera in ("cam1", "cam2"):
        judge_freely(station, camera, count)
    station.metrics.part("cam2", "lid", "pass")
    station.metrics.part_flicker("cam2", "lid")
    station.metrics.part_stuck("cam2", "lid", stuck=False)
    judge_on_command(station, "press", count)
    judge_on_command(station, "still", None)
    keep_books(station, count)


def plain(station, count):
    """One camera that runs free, and nothing else is used: no trigger, part, golden picture, journal or evidence."""
    station.metrics.ask_ready(lambda: True)
    station.metrics.set_subscribers(1)
    judge_freely(station, "cam", count)


def judge_freely(station, camera, count):
    """A frame, one in ten with a scratch, now and then left out by max_fps, unsure or empty; all in time."""
    metrics, ledger = station.metrics, station.ledger
    metrics.camera_up(camera, up=True)
    metrics.frame_arrived(camera, time.monotonic())
    if camera == "cam2":  # the quality of its pictures is watched
        metrics.image(camera, {"lid": Quality(level=0.4, dark=0.0, bright=0.0, contrast=0.1, sharpness=0.2)})
    for stage, seconds in [
        ("decode", 0.004),
        ("crop", 0.0003),
        ("queue", 0.002),
        ("engine", 0.009),
        ("publish", 0.0002),
    ]:
        metrics.stage(stage)(seconds)
    _, tickets = ledger.captured(camera)
    if count % 20 == 19:
        for ticket in tickets:
            ledger.dropped(ticket, "max_fps")
        return
    for ticket in tickets:
        if count % 10 == 0:
            ledger.verdict(ticket, "fail", "", "scratch")
        elif count % 50 == 1:
            ledger.verdict(ticket, "no_result", "uncertain")
        elif count % 3 == 0:
            ledger.verdict(ticket, "no_result", "empty")
        else:
            ledger.verdict(ticket, "pass", "")
    metrics.capture_to_verdict(camera)(0.012 + 0.001 * (count % 5))
    metrics.batch(1 + count % 4)


def judge_on_command(station, camera, count):
    """A frame; every other one answers two triggers, and a client repeats itself. With None the line stands still."""
    metrics, ledger = station.metrics, station.ledger
    metrics.camera_up(camera, up=True)
    metrics.frame_arrived(camera, time.monotonic())
    metrics.triggers_pending(camera, 0)
    _, (ticket,) = ledger.captured(camera)
    if count is None or count % 2:
        ledger.dropped(ticket, "untriggered")
        return
    for owed in (ticket, ledger.without_frame(camera, ticket.roi)):
        metrics.trigger(camera, "accepted")
        ledger.verdict(owed, "pass", "")
        metrics.trigger_to_verdict(camera)(0.02)
    metrics.trigger(camera, "duplicate")


def keep_books(station, count):
    """Golden parts pass, the journal is written, and more pictures are wanted than max_per_s allows."""
    metrics = station.metrics
    if count % 50 == 0:
        metrics.challenge(passed=True)
        metrics.vouched(vouched=True)
    metrics.journal_ok(ok=True)
    metrics.journal_committed(3, 0.002)
    metrics.journal_size(3 * count, 4096 + 600 * count)
    metrics.evidence_written()
    metrics.evidence_lost("too_many")
    metrics.evidence_size(100_000 * (count + 1))


def broken(station, count):
    """Everything that an alert is for: one camera is dead, one is dim, late and unsteady, and a frame got lost."""
    metrics, ledger = station.metrics, station.ledger
    metrics.camera_up("dim", up=True)
    metrics.frame_arrived("dead", time.monotonic() - 60)
    metrics.frame_arrived("dim", time.monotonic())
    metrics.reconnect("dim", "stall")
    _, (ticket,) = ledger.captured("dim")
    if count % 5 == 0:
        ledger.dropped(ticket, "unpublished")
    else:
        ledger.verdict(ticket, "no_result", "deadline" if count % 2 else "stale")
    metrics.capture_to_verdict("dim")(0.6)
    metrics.triggers_pending("dim", 4)
    metrics.trigger("dim", "busy")
    metrics.late_result("dim")
    metrics.part_stuck("dead", "lid", stuck=True)
    metrics.part("dead", "lid", "no_result")
    metrics.vouched(vouched=False)
    metrics.journal_ok(ok=False)
    metrics.journal_lost(1)
    metrics.evidence_lost("disk")
    if count == 0:
        ledger._captured["dim"] += 1


@pytest.fixture(scope="module")
def stations():
    with (
        Station({"cam1": ["left", "right"], "cam2": ["lid"], "press": ["cap"], "still": ["cap"]}, healthy) as good,
        Station({"cam": ["lid"]}, plain) as bare,
        Station({"dead": ["lid"], "dim": ["lid"]}, broken) as bad,
    ):
        yield good, bare, bad


@pytest.fixture(scope="module")
def nobody():
    """A target that nothing listens on, for as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(scope="module")
def prometheus(stations, nobody, tmp_path_factory):
    with PrometheusServer(tmp_path_factory.mktemp("prometheus"), [s.target for s in stations] + [nobody]) as server:
        server.wait_for_scrapes(3)
        yield server


# -- Prometheus and Grafana -----------------------------------------------------------------------------


@needs_prometheus
def test_every_expression_of_the_dashboard_returns_data(prometheus):
    """Each panel and each variable, from a Prometheus that scraped real metrics."""
    where = {expr: title for title, expr in dashboard_expressions()}
    assert len(where) > 60
    missing = prometheus.wait_for_data(where)
    assert [(where[expr], expr) for expr in missing] == []
    for expr in annotation_expressions():
        prometheus.query(expr)  # raises if it does not parse


@needs_prometheus
def test_a_panel_is_empty_only_where_its_text_says_what_is_not_used(prometheus, stations):
    """Of a daemon without triggers, parts, journal, evidence and golden parts: text there, data everywhere else."""
    _, bare, _ = stations
    shown = panels(bare.target)
    with_text = {title for title, text, _ in shown if text}
    assert prometheus.wait_for_data(e for title, _, asked in shown if title not in with_text for e in asked) == []
    assert {title for title, _, asked in shown if not any(map(prometheus.query, asked))} == with_text
    assert len(with_text) > 15


@needs_prometheus
def test_every_alert_finds_the_broken_station_and_never_the_healthy_one(prometheus, stations, nobody):
    """The conditions themselves, before their `for`, on real scrapes; no station restarts (test_alerts.py)."""
    *_, bad = stations
    alerts = prometheus.alerts()
    for of_restarts in ("InspectdRestarting", "InspectdEndsNowAndThen"):
        assert prometheus.query(alerts.pop(of_restarts)["query"]) == []
    assert len(alerts) >= 20
    assert prometheus.wait_for_data([rule["query"] for rule in alerts.values()]) == []
    expected = {name: {nobody if name == "InspectdUnreachable" else bad.target} for name in alerts}

    def found():
        return {
            name: {labels["instance"] for labels, _ in prometheus.query(rule["query"])} for name, rule in alerts.items()
        }

    prometheus.wait(lambda: found() == expected, 15, None)  # on a busy machine a scrape may time out
    assert found() == expected
    assert {rule["health"] for rule in prometheus.alerts().values()} <= {"ok", "unknown"}


@needs_prometheus
def test_the_identity_holds_at_every_scrape_that_prometheus_took(prometheus, stations):
    """captured + without frame == verdicts + dropped + in flight, in the stored history of the healthy station."""
    good, *_ = stations
    identity = (
        'sum by (camera, roi) ({__name__=~"inspectd_verdicts_total|inspectd_frames_dropped_total'
        f'|inspectd_frames_in_flight", instance="{good.target}"}})'
        f' - on (camera, roi) inspectd_verdicts_without_frame_total{{instance="{good.target}"}}'
        f' - on (camera) group_left () inspectd_frames_captured_total{{instance="{good.target}"}}'
    )
    worst = prometheus.query(f"max_over_time(abs({identity})[1m:500ms])")
    assert len(worst) == 5
    assert {value for _, value in worst} == {0}
    assert prometheus.query(f'sum(inspectd_verdicts_without_frame_total{{instance="{good.target}"}})')[0][1] > 5
    assert prometheus.query(f'inspectd_frames_captured_total{{instance="{good.target}"}}')[0][1] > 20


@needs_prometheus
@pytest.mark.parametrize("arguments", [["config", DEPLOY / "prometheus.yml"], ["rules", ALERTS]])
def test_promtool_finds_no_fault_in_the_files(arguments):
    """The scrape configuration with the rules that it names."""
    done = subprocess.run(["promtool", "check", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_finds_no_fault_in_the_metrics(stations):
    """Names, units, types and help, as served."""
    with urllib.request.urlopen(f"http://{stations[0].target}/metrics", timeout=10) as answer:
        body = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_the_alerts_and_the_scrape_configuration_agree_on_the_job():
    """A renamed job would silence the most important alert."""
    assert re.findall(r"job_name: (\w+)", (DEPLOY / "prometheus.yml").read_text()) == ["inspectd"]
    assert set(re.findall(r'job="(\w+)"', ALERTS.read_text() + DASHBOARD.read_text().replace("\\", ""))) == {"inspectd"}


def test_every_metric_is_on_the_dashboard():
    """Whoever adds a metric shows it."""
    metrics = Metrics(Ledger([("c", "r")]), ["c"])
    metrics.show_recipe(None, "4567def")
    body, _ = metrics.exposition("")
    exported = {
        line.split()[2]
        for line in body.decode().splitlines()
        if line.startswith("# TYPE inspectd_") and not line.split()[2].endswith("_created")
    }
    assert len(exported) >= 30
    shown = DASHBOARD.read_text()
    assert [name for name in sorted(exported) if name not in shown] == []


def test_the_first_of_each_refusal_and_loss_is_seen():
    """rate() cannot see a counter's first step out of nothing: all of them are exported from the start."""
    assert set(EVIDENCE_LOSSES) == set(get_args(EvidenceLoss))
    assert set(TRIGGER_RESULTS) - {"accepted"} <= set(get_args(ErrorCode))
    body = Metrics(Ledger([("c", "r")]), ["c"]).exposition("")[0].decode()
    for reason in EVIDENCE_LOSSES:
        assert f'inspectd_evidence_lost_total{{reason="{reason}"}} 0.0' in body
    for result in TRIGGER_RESULTS:
        assert f'inspectd_triggers_total{{camera="c",result="{result}"}} 0.0' in body
    assert 'inspectd_late_results_total{camera="c"} 0.0' in body
    assert "inspectd_triggers_pending{" not in body, "by this gauge a triggered camera is known"


def test_the_dashboard_is_laid_out_without_overlaps_and_asks_only_the_chosen_datasource():
    """Unique ids, panels inside 24 columns, nothing on top of another, one datasource variable."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = {}
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["targets"]
            for target in panel["targets"]:
                assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "camera"]
    assert variables["camera"]["multi"]
    used = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    assert not re.search(r'(camera|instance)="\$', used), "several chosen values are a regular expression: use =~"


# -- systemd --------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path):
    """The unit with a program that exists on every machine."""
    path = tmp_path / "inspectd@.service"
    path.write_text(unit_sandbox.UNIT.read_text().replace("/opt/inspectd/current/bin/inspectd", "/bin/true"))
    return path


@needs_systemd
def test_systemd_finds_no_fault_in_the_unit(unit):
    """As a template, as an instance, and with the examples of its comments in force."""
    cuda = unit.with_name("cuda@.service")
    examples = re.sub(
        r"^#(DeviceAllow|LimitMEMLOCK|LoadCredential|Environment)", r"\1", unit.read_text(), flags=re.MULTILINE
    )
    assert examples != unit.read_text()
    cuda.write_text(examples)
    for path in (unit, unit.with_name("inspectd@line1.service"), cuda):
        done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), path.name


@needs_systemd
def test_the_unit_stays_hardened(unit):
    """systemd's own exposure score, from 0 (best) to 10: 1.4 with systemd 252; its makers call 2 and less OK."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs Debian's systemd")
def test_the_user_of_the_unit_can_be_made(tmp_path):
    """systemd-sysusers makes exactly the user and group that the unit names, in an empty root."""
    (tmp_path / "etc").mkdir()
    source = unit_sandbox.UNIT.with_name("inspectd.sysusers")
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(source)], check=True, capture_output=True, timeout=60)
    (user,) = unit_sandbox.settings("User")
    (group,) = unit_sandbox.settings("Group")
    assert (tmp_path / "etc/passwd").read_text().startswith(f"{user}:")
    assert f"{group}:" in (tmp_path / "etc/group").read_text()


def test_the_unit_never_gives_up():
    """Not with exit code 2 either, which is of a port in use and of an address that is not there yet, too."""
    assert unit_sandbox.settings("Restart") == ["on-failure"]
    assert "RestartPreventExitStatus" not in unit_sandbox.UNIT.read_text()
    assert unit_sandbox.settings("StartLimitIntervalSec") == ["0"]
    assert unit_sandbox.settings("Type") == ["notify"]


def test_the_unit_reloads_by_the_signal_that_the_daemon_takes_and_keeps_state_where_it_may_write():
    """systemctl reload sends SIGHUP; the paths that the comments name lie in the unit's own folders."""
    assert unit_sandbox.settings("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    (state,) = unit_sandbox.settings("StateDirectory")
    text = unit_sandbox.UNIT.read_text()
    for key, name in ("journal.path", "journal.db"), ("evidence.dir", "evidence"):
        assert f'{key} = "/var/lib/{state}/{name}"'.replace("%i", "line1") in text


SANDBOXED = """
import os, socket, sqlite3, sys, urllib.request
import av, cv2, numpy as np, openvino as ov, zmq
from openvino import opset13 as op
from inspectd.observe.http import HttpServer
from inspectd.observe.ledger import Ledger
from inspectd.observe.logs import configure_logging
from inspectd.observe.metrics import Metrics

configure_logging("json", "info")
for denied in (lambda: os.chroot("/"), lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)):
    try:
        denied()
    except OSError:
        continue
    sys.exit("the sandbox is open")

picture = op.parameter([1, 3, 32, 32], np.float32)
weights = op.constant(np.ones((8, 3, 3, 3), np.float32))
model = ov.Model([op.convolution(picture, weights, [1, 1], [0, 0], [0, 0], [1, 1])], [picture])
compiled = ov.Core().compile_model(model, "CPU")
assert compiled([np.ones((1, 3, 32, 32), np.float32)])[0][0, 0, 0, 0] == 27

with av.open("clip.mp4", "w") as clip:
    stream = clip.add_stream("h264", rate=30)
    stream.width = stream.height = 64
    for _ in range(5):
        clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
    clip.mux(stream.encode())
with av.open("clip.mp4") as clip:
    assert sum(1 for _ in clip.decode(video=0)) == 5
assert cv2.resize(np.zeros((8, 8, 3), np.uint8), (4, 4), interpolation=cv2.INTER_AREA).shape == (4, 4, 3)

context = zmq.Context()
publisher, subscriber = context.socket(zmq.XPUB), context.socket(zmq.SUB)
port = publisher.bind_to_random_port("tcp://127.0.0.1")
subscriber.connect(f"tcp://127.0.0.1:{port}")
subscriber.subscribe("")
assert publisher.recv() == b"\\x01"
publisher.send(b"verdict")
assert subscriber.recv() == b"verdict"
context.destroy(linger=0)

journal = sqlite3.connect("journal.db")
journal.execute("pragma journal_mode = wal")
journal.execute("create table verdicts (seq)")
journal.commit()

server = HttpServer("127.0.0.1:0", Metrics(Ledger([("c", "r")]), ["c"]), lambda: (True, {}), lambda: (True, {}))
server.start()
metrics = urllib.request.urlopen(server.url + "/metrics").read()
assert b"process_resident_memory_bytes" in metrics
assert server.stop(5)
print("worked")
"""


@needs_systemd
def test_decoder_engine_sockets_and_database_work_under_the_units_system_call_filter(tmp_path):
    """The filter and address families that the unit sets, enforced by the kernel on the real libraries."""
    done = subprocess.run(
        [sys.executable, unit_sandbox.__file__, sys.executable, "-c", SANDBOXED],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
    )
    if done.returncode == unit_sandbox.NOT_POSSIBLE:
        pytest.skip("no seccomp here")
    assert (done.returncode, done.stdout.strip()) == (0, "worked"), done.stderr


# -- the PLC bridges ------------------------------------------------------------------------------------

BRIDGES = ["modbus", "opcua"]


def bridge_unit(kind):
    return unit_sandbox.UNIT.with_name(f"inspectd-{kind}@.service")


@needs_systemd
@pytest.mark.parametrize("kind", BRIDGES)
def test_systemd_finds_no_fault_in_the_units_of_the_bridges_and_they_are_hardened_more(tmp_path, kind):
    """As a template and as an instance; 1.2 with systemd 252, where the daemon's is 1.6: no devices, no other users."""
    unit = tmp_path / bridge_unit(kind).name
    unit.write_text(bridge_unit(kind).read_text().replace("/opt/inspectd/current/bin/inspectd", "/bin/true"))
    instance = unit.with_name(unit.name.replace("@", "@line1"))
    instance.write_text(re.sub(r"^#(LoadCredential)", r"\1", unit.read_text(), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", unit, instance], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", BRIDGES)
def test_a_bridge_is_restarted_for_ever_and_starts_without_the_daemon(kind):
    """Without one it is there to say so; a daemon that was stopped by hand is not started with it."""
    text = bridge_unit(kind).read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert (settings["Restart"], settings["StartLimitIntervalSec"], settings["Type"]) == ("always", "0", "notify")
    assert "RestartPreventExitStatus" not in settings
    assert settings["After"].split()[0] == "inspectd@%i.service"
    assert settings["Wants"] == "network-online.target"
    assert not {"Requires", "BindsTo", "PartOf"} & set(settings)
    assert f"inspectd bridge {kind} -c /etc/inspectd/%i.toml $OPTIONS" in settings["ExecStart"]


# No memory may become code, as MemoryDenyWriteExecute= wants it; an older kernel does not know how to enforce it.
WITHOUT_WRITE_EXECUTE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


@needs_systemd
@pytest.mark.parametrize("kind", ["modbus", pytest.param("opcua", marks=pytest.mark.soak)])
def test_a_bridge_works_under_the_system_call_filter_of_its_unit(tmp_path, kind):
    """Started as the unit starts it, until it hears a line; and SIGTERM ends it with 0."""
    layout = tmp_path / "layout.toml"
    layout.write_text('[[cameras]]\nname = "top"\nrois = [{ name = "part" }]\n')
    sandbox = [sys.executable, unit_sandbox.__file__, sys.executable, "-c", WITHOUT_WRITE_EXECUTE]
    bridge = [sys.executable, "-m", "inspectd", "bridge", kind, "--layout", layout, "--bind", "127.0.0.1:0"]
    environment = os.environ | {"UNIT": str(bridge_unit(kind))}
    with (
        FakeLine() as line,
        subprocess.Popen(
            [*sandbox, *bridge, "--verdicts", line.verdicts, "--control", line.control],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        events = []
        while not events or events[-1] != "line_safe":
            text = process.stderr.readline()
            if not text and process.wait(20) == unit_sandbox.NOT_POSSIBLE:
                pytest.skip("no seccomp here")
            assert text, (process.returncode, events)
            events.append(json.loads(text)["event"])
        assert "bridge_ready" in events
        process.terminate()
        assert process.wait(20) == 0
