"""The commands of a running line, as typed: what they print, and their exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from fake_line import FakeLine, unused_endpoint

from inspectd import cli
from inspectd.client import exchange, inspect, replies

TOPIC = "verdict/top/part/"


class Done(NamedTuple):
    code: int
    out: list[str]
    err: list[str]


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: a process each would cost half a second."""
    monkeypatch.setattr(cli, "_quiet_logs", lambda level: None)

    def typed(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["inspectd", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out.splitlines(), said.err.splitlines())

    return typed


@pytest.fixture
def line() -> Iterator[FakeLine]:
    with FakeLine({"top": ("part", "lid")}, heartbeat_s=0.3) as made:
        yield made


def test_trigger_prints_its_id(run: Run, line: FakeLine) -> None:
    done = run("trigger", "top", "--part", "p 7", "--deadline", "250", "--control", line.control)
    assert (done.code, done.err) == (0, [])
    assert done.out[0].startswith("trigger-")
    asked = line.await_request("trigger")
    assert (asked.part_id, asked.deadline_ms) == ("p 7", 250)


@pytest.mark.parametrize(("kind", "code"), [("pass", 0), ("fail", 1), ("no_result", 1)])
def test_trigger_waits_for_the_verdict_of_every_region(run: Run, line: FakeLine, kind: str, code: int) -> None:
    """Exit 0 only if all of them passed."""
    line.on_trigger = kind
    done = run("trigger", "top", "--wait", "--verdicts", line.verdicts, "--control", line.control)
    assert done.code == code
    assert [shown.split()[1] for shown in done.out[1:]] == [TOPIC, "verdict/top/lid/"]
    assert all(kind in shown for shown in done.out[1:])


def test_a_region_without_a_verdict_is_no_pass(run: Run, line: FakeLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "GRACE_S", 0.1)
    line.on_trigger = None
    done = run("trigger", "top", "--wait", "--deadline", "20", "--verdicts", line.verdicts, "--control", line.control)
    assert done.code == 1
    assert done.err == [f"inspectd: no verdict came by the deadline on verdict/top/lid/, {TOPIC}"]


def test_replay_prints_json_lines_and_names_what_is_missing(run: Run, line: FakeLine) -> None:
    """Over several pages, and into a pipe."""
    line.page = 3
    sent = [line.verdict() for _ in range(10)]
    line.forget(TOPIC, 5)
    done = run("replay", TOPIC, "--from", "2", "--control", line.control)
    assert done.code == 0
    assert [json.loads(shown)["seq"] for shown in done.out] == [m.seq for m in sent if m.seq not in (1, 5)]
    assert done.err == ["inspectd: not in the journal: seq 5 to 5"]


def test_status_recipe_reload_and_challenge_are_printed_for_people(run: Run, line: FakeLine) -> None:
    control = ("--control", line.control)
    status = run("status", *control)
    assert status.code == 0
    assert "camera          top  ready  command" in status.out
    assert json.loads(run("status", "--json", *control).out[0])["boot_id"] == line.boot_id
    assert run("recipe", "bolts", *control).out[0] == "recipe          bolts"
    assert run("recipe", "--none", *control).out[0] == "recipe          none"
    assert run("reload", *control).out[1:] == ["applied         decision.pass_min", "needs a restart publish.bind"]
    challenge = run("challenge", *control)
    assert (challenge.code, challenge.out[-1]) == (0, "challenge       passed")
    line.answers["challenge"] = lambda request: {"passed": False, "pictures": [{"file": "bad.png", "ok": False}]}
    failed = run("challenge", *control)
    assert failed.code == 1
    assert failed.out[0].startswith("WRONG           bad.png")


def test_a_refusal_is_one_line_with_its_code_and_exit_1(run: Run, line: FakeLine) -> None:
    for words in (("trigger", "elsewhere"), ("recipe", "unknown"), ("replay", TOPIC, "--boot", "gone")):
        done = run(*words, "--control", line.control)
        assert (done.code, done.out, len(done.err)) == (1, [], 1)
    assert done.err == ["inspectd: unknown_boot: gone: not in the journal"]


@pytest.mark.parametrize(
    "words",
    [
        ("trigger",),
        ("trigger", "a/b"),
        ("trigger", "top", "--part", "x" * 1_000_000),
        ("trigger", "top", "--deadline", "soon"),
        ("replay", TOPIC, "--from", "0"),
        ("recipe",),
        ("recipe", "bolts", "--none"),
        ("status", "--control", "nonsense"),
        ("status", "--key", "mine.key_secret"),
        ("status", "--key", "/nowhere/a", "--server-key", "/nowhere/b"),
        ("tail", "nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.code, done.out, len(done.err)) == (2, [], 1)
    assert len(done.err[0]) < 300


def test_no_daemon_there_is_one_line_and_exit_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon (within 2.5 s; here less), also for what may take minutes."""
    assert exchange.CONNECT_S < 3
    monkeypatch.setattr(exchange, "CONNECT_S", 0.2)
    endpoint = unused_endpoint()
    done = run("recipe", "bolts", "--control", endpoint)
    assert (done.code, done.out, len(done.err)) == (1, [], 1)
    assert endpoint in done.err[0]


def test_a_reply_with_other_fields_than_expected_is_printed_all_the_same() -> None:
    """Of an older or a newer daemon: missing, unknown, of another kind."""
    strange = {"cameras": [7, {"rois": "none", "state": None}, {}], "journal": "ok", "challenge": 3, "models": {"a": 1}}
    for lines in (replies.status_lines, replies.recipe_lines, replies.reload_lines, replies.challenge_lines):
        for reply in ({}, strange, {"pictures": [{}], "models": ["x", None], "applied": "all"}):
            assert all(shown.isprintable() for shown in lines(reply))
