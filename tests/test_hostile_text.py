"""Whatever a configuration, a manifest, a request, a journal or video's headers hold: answers, never a traceback."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from hostile.bytes_kit import broken
from hostile.targets import TARGETS
from journal_kit import BOOT, TOPIC, body, write

from inspectd.capture.h264 import Continuity
from inspectd.config import load_settings
from inspectd.errors import ConfigError, InspectdError
from inspectd.verdict.control_schema import ControlError, ReplayRequest
from inspectd.verdict.journal.loss import ToldLoss, read_loss
from inspectd.verdict.journal.replay import ReplayDesk, _Waiting
from inspectd.verdict.journal.verify import verify


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"weights"}))  # which have a suite of their own, beside torch
def test_broken_data_is_refused_or_understood(name, tmp_path):
    """The targets of `make fuzz`, on their seeds and on what a disk or a stranger makes of them."""
    target = TARGETS[name](tmp_path)
    for number, seed in enumerate(target.seeds):
        target.check(seed)
        for again in range(20):
            _, data = broken(seed, random.Random(f"{name} {number} {again}"))
            target.check(data)


def test_the_seeds_of_the_configuration_are_configurations(tmp_path):
    """Else fuzzing them would come no further than to their first error."""
    path = tmp_path / "inspectd.toml"
    for seed in TARGETS["configuration"](tmp_path).seeds[::2]:
        path.write_bytes(seed)
        assert load_settings(path, {}).cameras


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = " + "[" * 5000, "too many brackets"),
        ('[model]\nbundle = "a\\u0000b"', "u0000"),
        ("#" * 1_000_001, "longer than"),
    ],
)
def test_a_configuration_that_no_parser_survives_is_refused(tmp_path, text, expected):
    path = tmp_path / "inspectd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_settings(path, {})
    assert str(caught.value).startswith(str(path))


def test_a_configuration_without_end_is_refused():
    """Nothing is read of `-c /dev/zero`."""
    with pytest.raises(ConfigError, match="is no plain file"):
        load_settings(Path("/dev/zero"), {})


def test_no_error_writes_a_second_line_or_to_the_terminal():
    """Whatever name it carries."""
    assert str(InspectdError("a\nb\x1b[2J\u202e c é")) == "a\ufffdb\ufffd[2J\ufffd c é"


@pytest.mark.parametrize(
    "told", ["[" * 100_000, '{"rows": 1e999, "messages": {}}', '{"messages": {"x": [[1e999, 2]]}}']
)
def test_a_loss_that_cannot_be_read_tells_nothing(told):
    assert read_loss(told.encode()) == ToldLoss()


def test_values_of_a_wrong_kind_in_a_journal_are_damage(tmp_path):
    """SQLite hands on what a damaged page says, also a text where a number belongs."""
    path = tmp_path / "journal.db"
    write(path, BOOT, [("message", TOPIC, seq, body(seq)) for seq in range(1, 5)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')')")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE rows SET body = 'text' WHERE seq = 3")
    assert "another kind" in " ".join(verify(path).faults)
    answers = []
    request = ReplayRequest(op="replay", topic=TOPIC, from_seq=1, boot_id=BOOT)
    ReplayDesk(path, "now", lambda _: True)._serve(_Waiting(request, answers.append))
    (answer,) = answers
    assert isinstance(answer, ControlError)
    assert answer.code == "journal_failing"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE chain SET head_hash = 7")
    assert "no chain" in " ".join(verify(path).faults)


def test_a_journal_whose_rows_go_round_in_circles_is_read_once(tmp_path):
    """A page in another's place: each query for what comes next finds what came before."""
    path = tmp_path / "journal.db"
    write(path, BOOT, [("message", TOPIC, seq, body(seq, filling="x" * 500)) for seq in range(1, 60)])
    data = path.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    leaves = [number for number, page in enumerate(pages) if page[0] == 13 and b"filling" in page]
    pages[leaves[2]] = pages[leaves[0]]
    path.write_bytes(b"".join(pages))
    assert "stands behind" in " ".join(verify(path).faults)


def test_a_row_that_claims_to_be_a_gigabyte_takes_no_memory(tmp_path):
    """The length in front of a value is what SQLite believes."""
    path = tmp_path / "journal.db"
    write(path, BOOT, [("message", TOPIC, 1, body(1, filling="x" * 500))])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE rows SET body = zeroblob(300000000)")
    assert "too big" in " ".join(verify(path).faults)


def test_a_parameter_set_that_cannot_be_read_is_damage():
    """Nothing behind it can be checked until the next one."""
    lost, _ = Continuity().follow(b"\0\0\1\x67\x64\0\0\1\x41\x9a\x24\x6c\x41")
    assert lost


@pytest.mark.parametrize("zeros", [10, 28, 40, 40_000])
def test_a_parameter_set_with_a_huge_number_costs_neither_memory_nor_time(zeros):
    """2^(2^28) has no place in memory. The number is the length of frame_num, behind profile, level and id."""
    bits = f"{66:08b}{0:08b}{30:08b}1" + "0" * zeros + "1" * 60
    bits += "0" * (-len(bits) % 8)
    raw = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\0\0", b"\0\0\3")
    follow = Continuity()
    assert follow.follow(b"\0\0\1\x67" + raw + b"\0\0\1\x41\x9a\x24\x6c\x41\x22") == (True, None)
