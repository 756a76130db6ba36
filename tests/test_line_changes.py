"""Recipes, reloads, model swaps and challenges on the running daemon: all or nothing, and nothing mixed."""

import json
import shutil
import signal
import sqlite3
import weakref

import cv2
import numpy as np
import pytest
from colour_bundle import COLOURS, VERDICTS, colour_bundle
from daemon_process import DaemonProcess
from faulty_camera import FaultyCamera, kind_at
from journal_kit import eventually
from line import Line, running_daemon

from inspectd import challenge

CONFIG = """
[model]
bundle = "bundle"
[decision]
pass_min = 0.8
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[journal]
path = "journal.db"
[log]
format = "json"
[[cameras]]
name = "line1"
source = "usb:0"
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
[challenge]
pictures = [
    { file = "good.png", camera = "line1", roi = "part", expect = "pass", label = "good" },
    { file = "scratch.png", camera = "line1", roi = "part", expect = "fail" },
]
[recipes.lid]
bundle = "bundle-lid"
rois = [
    { camera = "line1", name = "lid", box = [40, 0, 80, 80] },
    { camera = "line1", name = "part", box = [80, 0, 80, 80] },
]
challenge = [{ file = "frame.png", camera = "line1", roi = "lid", expect = "pass" }]
[recipes.wrong]
rois = [{ camera = "line1", name = "part", box = [80, 0, 80, 80] }]
challenge = [{ file = "scratch.png", camera = "line1", roi = "part", expect = "pass" }]
[recipes.outside]
rois = [{ camera = "line1", name = "part", box = [100, 0, 80, 80] }]
challenge = []
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two bundles of different hash, and golden pictures."""
    folder = tmp_path_factory.mktemp("changes")
    colour_bundle(folder / "bundle")
    colour_bundle(folder / "bundle-lid")
    manifest = json.loads((folder / "bundle-lid/bundle.json").read_text())
    (folder / "bundle-lid/bundle.json").write_text(json.dumps(manifest | {"created_by": "somebody else"}))
    for kind, colour in COLOURS.items():
        cv2.imwrite(str(folder / f"{kind}.png"), np.full((80, 80, 3), colour[::-1], np.uint8))
    cv2.imwrite(str(folder / "frame.png"), np.full((80, 160, 3), COLOURS["good"][::-1], np.uint8))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "line.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def line(folder, monkeypatch):
    """The daemon at work, ready, with a camera without faults."""
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=100)) as daemon, Line(daemon) as line:
        line.state("ready")
        yield line
        assert all(account.balanced for account in daemon.ledger.snapshot())


def right(verdict):
    return verdict["reason"] is None and verdict["verdict"] == VERDICTS[kind_at(verdict["frame"]["pts"])]


def of(reply, *keys):
    return tuple(reply[key] for key in keys)


def test_a_recipe_is_acknowledged_with_its_hash_and_no_verdict_mixes_two(line):
    """Before: one region by the first bundle; after: two by the other; in the order of the stream, never both."""
    before = line.ask("status")
    line.until(lambda topic, m: topic == "verdict/line1/part/" and m["seq"] > 20)
    reply = line.ask("recipe", name="lid")
    assert reply["ok"], reply
    assert reply["recipe"] == "lid"
    assert reply["config"] != before["config"]
    line.until(lambda topic, m: topic == "verdict/line1/lid/" and m["seq"] > 20)
    verdicts = [(topic, m) for topic, m in line.messages if topic.startswith("verdict/")]
    seen = [of(m, "recipe", "config", "model") for _, m in verdicts]
    old = (None, before["config"], before["cameras"][0]["rois"][0]["model"])
    new = ("lid", reply["config"], reply["models"][0])
    assert old[2] != new[2]
    switched = seen.index(new)
    assert set(seen[:switched]) == {old}
    assert set(seen[switched:]) == {new}
    assert all(topic == "verdict/line1/part/" for topic, _ in verdicts[:switched])
    assert {topic for topic, _ in verdicts[switched:]} == {"verdict/line1/part/", "verdict/line1/lid/"}
    parts = [m["seq"] for topic, m in verdicts if topic == "verdict/line1/part/"]
    assert parts == list(range(parts[0], parts[0] + len(parts)))
    assert all(right(m) for _, m in verdicts[-20:])
    assert line.until(lambda topic, m: topic == "heartbeat/")[-1][1]["recipe"] == "lid"
    back = line.ask("recipe", name=None)
    assert of(back, "recipe", "config") == (None, before["config"])


def test_a_line_up_that_was_left_is_let_go_at_once(folder, monkeypatch):
    """Its engine may hold memory of a GPU, which the next one needs; nothing waits for the garbage collector."""
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=100)) as daemon, Line(daemon) as line:
        line.state("ready")
        for _ in range(3):
            assert line.ask("recipe", name="lid")["ok"]
            left = weakref.ref(daemon.station.lineup)
            assert not line.ask("recipe", name="wrong")["ok"]  # a refused one leaves nothing, and breaks nothing
            assert left() is daemon.station.lineup
            assert line.ask("recipe", name=None)["ok"]
            assert left() is None


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("wrong", "refused", "the challenge failed: scratch.png (line1/part): expected pass, got fail (scratch)"),
        ("outside", "refused", "camera line1: ROI 'part' [100, 0, 80, 80] lies outside the 160x80 frame"),
        ("nobody", "unknown_recipe", "no recipe 'nobody'; known: lid, wrong, outside"),
    ],
)
def test_a_recipe_that_fails_leaves_the_old_one_at_work(line, name, code, message):
    """The reply says why; the line goes on, ready, under the old configuration."""
    before = line.ask("status")["config"]
    reply = line.ask("recipe", name=name)
    assert reply["error"] == {"code": code, "message": message}
    newest = line.messages[-1][1]["published_at"]
    assert line.verdict(lambda m: m["published_at"] > newest)["config"] == before
    status = line.ask("status")
    assert of(status, "state", "recipe", "config") == ("ready", None, before)
    assert status["challenge"]["passed"]


def test_a_failed_challenge_withholds_every_verdict_until_one_is_passed(line, folder):
    """READY is off, verdicts are no_result(not_ready); a passed challenge brings both back."""
    good = (folder / "good.png").read_bytes()
    shutil.copy(folder / "stain.png", folder / "good.png")
    reply = line.ask("challenge")
    assert of(reply, "ok", "passed") == (True, False)
    assert [picture["ok"] for picture in reply["pictures"]] == [False, True]
    failed = line.until(lambda topic, m: topic.startswith("verdict/") and m["reason"] == "not_ready")
    assert "challenge" in line.state("fault")
    after = [m for topic, m in line.messages[len(line.messages) - 1 :] if topic.startswith("verdict/")]
    line.until(lambda topic, m: topic.startswith("verdict/") and m["seq"] > failed[-1][1]["seq"] + 30)
    after = [m for t, m in line.messages if t.startswith("verdict/") and m["seq"] > failed[-1][1]["seq"]]
    assert {of(m, "verdict", "reason", "label") for m in after} == {("no_result", "not_ready", None)}
    ready, detail = line.daemon.health.ready()
    assert (ready, detail["changeover"]) == (False, "the challenge failed")
    (folder / "good.png").write_bytes(good)
    assert line.ask("challenge")["passed"]
    assert line.verdict(lambda m: m["reason"] != "not_ready")["reason"] is None
    line.state("ready")


def test_the_clock_challenges_too(folder, monkeypatch):
    """Every `every_s` seconds; what has gone wrong since is found without anybody asking."""
    path = folder / "line.toml"
    path.write_text(CONFIG.replace("[challenge]", "[challenge]\nevery_s = 0.3"))
    with running_daemon(monkeypatch, path, FaultyCamera()) as daemon, Line(daemon) as line:
        line.state("ready")
        shutil.copy(folder / "stain.png", folder / "good.png")
        assert "challenge" in line.state("fault")
        count = daemon.metrics.registry.get_sample_value
        assert count("inspectd_challenges_total", {"result": "passed"}) >= 1
        assert count("inspectd_challenge_passed") == 0


def test_a_challenge_that_cannot_be_held_is_a_failed_one(line, folder, monkeypatch):
    """A golden picture that is gone, no memory to judge it in: what cannot be shown proves nothing."""
    kept = (folder / "scratch.png").read_bytes()
    (folder / "scratch.png").unlink()
    assert not line.ask("challenge")["passed"]
    line.verdict(lambda m: m["reason"] == "not_ready")
    (folder / "scratch.png").write_bytes(kept)
    assert line.ask("challenge")["passed"]
    line.verdict(lambda m: m["reason"] is None)

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(challenge, "read_golden", no_memory)
    assert not line.ask("challenge")["passed"]
    line.verdict(lambda m: m["reason"] == "not_ready")


def test_a_reload_takes_what_it_can_and_says_what_needs_a_restart(line, folder):
    """Key by key; the configuration's hash changes with it."""
    before = line.ask("status")["config"]
    path = folder / "line.toml"
    path.write_text(CONFIG.replace("pass_min = 0.8", "pass_min = 0.9").replace('"127.0.0.1:0"', '"127.0.0.1:1"'))
    reply = line.ask("reload")
    assert reply["applied"] == ["decision.pass_min: 0.8 -> 0.9"]
    assert reply["restart"] == ["http.bind: 127.0.0.1:0 -> 127.0.0.1:1"]
    assert reply["config"] != before
    line.verdict(lambda m: m["config"] == reply["config"])
    again = line.ask("reload")
    assert (again["applied"], again["restart"]) == ([], reply["restart"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[model", "is not valid TOML"),
        ("pass_min = 0.8", "pass_min = 8", "decision.pass_min"),
        ('bundle = "bundle"', 'bundle = "elsewhere"', "elsewhere"),
        # Each key is taken live, or needs a restart; together they only fit after one.
        ("line1", "line2", "a restart is needed for all of it: recipes.lid: ROI 'lid' is of camera"),
    ],
)
def test_a_bad_reload_keeps_the_old_configuration(line, folder, old, new, message):
    """One line that says what is wrong; the line goes on."""
    before = line.ask("status")["config"]
    (folder / "line.toml").write_text(CONFIG.replace(old, new))
    reply = line.ask("reload")
    assert reply["error"]["code"] == "refused"
    assert message in reply["error"]["message"]
    assert "\n" not in reply["error"]["message"]
    newest = line.messages[-1][1]["published_at"]
    assert line.verdict(lambda m: m["published_at"] > newest)["config"] == before


def test_another_model_under_the_same_path_is_a_reload(line, folder):
    """The hot swap: verdicts of the new bundle's hash, after it passed the challenge."""
    old = line.ask("status")["models"][0]["model"]
    shutil.rmtree(folder / "bundle")
    (folder / "bundle-lid").rename(folder / "bundle")
    path = folder / "line.toml"
    path.write_text(CONFIG[: CONFIG.index("[recipes.lid]")])
    reply = line.ask("reload")
    assert reply["ok"], reply
    assert any(f"model {old} -> {reply['models'][0]}" in change for change in reply["applied"])
    assert right(line.verdict(lambda m: m["model"] == reply["models"][0]))


def test_the_journal_knows_every_change(line, folder):
    """Boot, challenge, recipe and configuration are rows of the chain."""
    line.ask("recipe", name="lid")
    line.ask("recipe", name="wrong")
    (folder / "line.toml").write_text(CONFIG.replace("pass_min = 0.8", "pass_min = 0.9"))
    line.ask("reload")
    assert line.daemon.journal.write_through(5.0)
    with sqlite3.connect(folder / "journal.db") as journal:
        kinds = [kind for (kind,) in journal.execute("SELECT kind FROM rows ORDER BY number")]
    changes = [kind for kind in kinds if kind not in ("verdict", "status", "message")]
    switched, refused, reloaded = ["recipe", "challenge", "recipe"], ["challenge"], ["challenge", "recipe", "config"]
    assert changes == ["boot", "recipe", "challenge", *switched, *refused, *reloaded]


def test_a_recipe_outlives_a_restart(folder, monkeypatch):
    """The journal says what was in force at the end."""
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera()) as daemon, Line(daemon) as line:
        assert line.ask("recipe", name="lid")["ok"]
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera()) as daemon, Line(daemon) as line:
        assert line.ask("status")["recipe"] == "lid"
        assert line.verdict(lambda m: m["roi"] == "lid")["recipe"] == "lid"


def test_a_recipe_that_is_not_known_any_more_must_be_chosen_before_anything_passes(folder, monkeypatch):
    """The one in force at the end is gone from the file: no verdict by a guess, until somebody says what runs."""
    path = folder / "line.toml"
    with running_daemon(monkeypatch, path, FaultyCamera()) as daemon, Line(daemon) as line:
        assert line.ask("recipe", name="lid")["ok"]
    path.write_text(CONFIG.replace("[recipes.lid]", "[recipes.cover]"))
    with running_daemon(monkeypatch, path, FaultyCamera()) as daemon, Line(daemon) as line:
        assert "recipe is not known" in line.state("fault")
        assert line.verdict(lambda m: m["reason"] != "stale")["reason"] == "not_ready"
        assert line.ask("recipe", name=None)["ok"]
        assert line.verdict(lambda m: m["reason"] is None)["recipe"] is None


def test_what_nobody_knew_is_not_known_to_a_journal_that_was_begun_instead(folder, monkeypatch):
    """A damaged one is moved away, as the log advises; nobody has chosen a recipe yet, and the next start says so."""
    path, journal = folder / "line.toml", folder / "journal.db"
    with running_daemon(monkeypatch, path, FaultyCamera()) as daemon, Line(daemon) as line:
        assert line.ask("recipe", name="lid")["ok"]
    damaged = bytearray(journal.read_bytes())
    damaged[100 : 3 * 4096] = bytes([0xFF]) * (3 * 4096 - 100)
    journal.write_bytes(damaged)
    with running_daemon(monkeypatch, path, FaultyCamera()) as daemon, Line(daemon) as line:
        assert "recipe is not known" in line.state("fault")
        journal.rename(folder / "damaged.db")
        eventually(lambda: daemon.journal.state == "ok")
    with running_daemon(monkeypatch, path, FaultyCamera()) as daemon, Line(daemon) as line:
        assert "recipe is not known" in line.state("fault")


def test_sighup_reloads(folder):
    """As `systemctl reload` does; the log says key by key what changed."""
    path = folder / "line.toml"
    text = CONFIG[: CONFIG.index("[challenge]")].replace("usb:0", "conveyor:?width=160&height=128")
    path.write_text(text)
    with DaemonProcess(path) as daemon:
        daemon.started()
        path.write_text(text.replace("pass_min = 0.8", "pass_min = 0.9"))
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait_for_log("reloaded")["applied"] == ["decision.pass_min: 0.8 -> 0.9"]
        assert daemon.stop() == 0
