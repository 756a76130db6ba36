"""`inspectd journal`: what a quality engineer and an auditor type."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from journal_kit import BOOT, TOPIC, body, journal, query, write

from inspectd import cli
from inspectd.errors import UsageError
from inspectd.verdict.journal.export import COLUMNS, parse_time

DAY = 86_400_000_000
NOON = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z


@pytest.fixture
def path(tmp_path):
    """Two messages, a correction, a late result, an event and something unreadable; one a day."""
    path = tmp_path / "journal.db"
    part = {"schema": "inspectd.part/1", "seq": 1, "camera": "line", "roi": "part", "verdict": "pass", "label": "good"}
    part["frames"] = {"total": 5, "passed": 4, "failed": 0, "uncertain": 1, "unseen": 0}
    write(
        path,
        BOOT,
        [
            ("boot", None, None, b'{"version": "1"}'),
            ("message", TOPIC, 1, body(1, "pass", label="good", score=0.75, part_id="=1+2")),
            ("message", TOPIC, 1, body(1, "no_result", reason="deadline", latency_ms={"total": 12.5})),
            ("message", "part/line/part/", 1, msgpack.packb(part)),
            ("late", TOPIC, None, body(2, "pass")),
            ("message", TOPIC, 3, b"\xff\xfe"),
        ],
    )
    for number in range(1, 7):
        query(path, "UPDATE rows SET at_us = ? WHERE number = ?", NOON + (number - 1) * DAY, number)
    return path


@pytest.fixture
def inspectd(monkeypatch, capsys):
    """Runs a command line; (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["inspectd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_csv_has_a_line_per_row_and_a_column_per_question(inspectd, path):
    """Flat, the correction in place of what it corrects, and no text that a spreadsheet would run."""
    code, out, err = inspectd("journal", "export", path, "--csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (0, "5 rows\n")
    assert list(lines[0]) == list(COLUMNS)
    boot, verdict, part, late, unreadable = lines
    assert (boot["kind"], boot["data"], boot["recorded_at"]) == (
        "boot",
        '{"version": "1"}',
        "2026-01-31T12:00:00.000000Z",
    )
    assert (verdict["camera"], verdict["verdict"], verdict["reason"]) == ("line", "no_result", "deadline")
    assert (verdict["latency_total_ms"], verdict["seq"], verdict["boot_id"]) == ("12.5", "1", BOOT)
    assert (part["verdict"], part["frames_total"], part["frames_uncertain"]) == ("pass", "5", "1")
    assert (late["kind"], late["topic"], late["seq"], late["verdict"]) == ("late", TOPIC, "", "pass")
    assert (unreadable["seq"], unreadable["data"]) == ("3", "base64://4=")


def test_a_part_id_is_no_formula(inspectd, tmp_path):
    """Part ids come from outside."""
    path = tmp_path / "journal.db"
    write(path, BOOT, [("message", TOPIC, 1, body(1, part_id='=HYPERLINK("x")'))])
    _, out, _ = inspectd("journal", "export", path, "--csv")
    (line,) = csv.DictReader(io.StringIO(out))
    assert line["part_id"] == '\'=HYPERLINK("x")'


def test_jsonl_has_the_whole_message(inspectd, path):
    """As it was published, whatever the encoding on the wire."""
    code, out, _ = inspectd("journal", "export", path, "--jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["number"] for line in lines] == [1, 3, 4, 5, 6]
    assert lines[2]["body"]["frames"]["passed"] == 4
    assert lines[4] == {
        "number": 6,
        "recorded_at": "2026-02-05T12:00:00.000000Z",
        "kind": "message",
        "boot_id": BOOT,
        "topic": TOPIC,
        "seq": 3,
        "body_base64": "//4=",
    }


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--since", "2026-02-02T12:00:00Z"], [3, 4, 5, 6]),
        (["--until", "2026-02-02T12:00:00Z"], [1]),
        (["--since", "2026-02-02", "--until", "2026-02-04T13:00:00+01:00"], [3, 4]),
        (["--topic", "part/"], [4]),
        (["--topic", "verdict/line/", "--since", "2026-02-03"], [5, 6]),
        (["--since", "2h"], []),
        (["--until", "2026-01-01"], []),
    ],
)
def test_a_part_of_the_journal(inspectd, path, options, numbers):
    """By time, by topic, by both; the end does not belong to it."""
    _, out, _ = inspectd("journal", "export", path, "--jsonl", *options)
    assert [json.loads(line)["number"] for line in out.splitlines()] == numbers


def test_times_as_people_write_them():
    """How long ago, or RFC 3339; without a zone it is UTC; anything else is refused by name."""
    assert parse_time("2h", NOON) == NOON - 7_200_000_000
    assert parse_time("7d", NOON) == NOON - 7 * DAY
    assert parse_time("2026-01-31T12:00:00Z", 0) == parse_time("2026-01-31T13:00:00+01:00", 0) == NOON
    assert parse_time("2026-01-31 12:00", 0) == NOON
    for wrong in ("yesterday", "2 h", "-2h", "", "2026-13-01", "99999999999d"):
        with pytest.raises(UsageError, match="is no time"):
            parse_time(wrong, 0)


def test_a_file_appears_when_it_is_whole(inspectd, path, tmp_path):
    """-o writes beside and renames; the journal itself is never the target."""
    target = tmp_path / "out.csv"
    code, out, _ = inspectd("journal", "export", path, "--csv", "-o", target)
    assert (code, out, target.read_text().count("\n")) == (0, "", 6)
    before = path.read_bytes()
    code, _, err = inspectd("journal", "export", path, "--csv", "-o", path)
    assert (code, "is the journal itself" in err, path.read_bytes() == before) == (2, True, True)
    code, _, err = inspectd("journal", "export", path, "--csv", "-o", tmp_path / "nowhere" / "x.csv")
    assert (code, "cannot be written" in err) == (1, True)
    assert sorted(file.name for file in tmp_path.glob("out*")) == ["out.csv"]


def test_what_is_no_plain_file_is_never_replaced(inspectd, path, tmp_path):
    """A pipe here; as root it might be the node of a device. Through a link as well."""
    node, link = tmp_path / "node", tmp_path / "link"
    os.mkfifo(node)
    link.symlink_to(node)
    for target in (node, link):
        code, out, err = inspectd("journal", "export", path, "--csv", "-o", target)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"inspectd: -o {target}: is no plain file")
    assert node.is_fifo()
    assert link.is_symlink()


def test_export_and_verify_while_the_daemon_writes(inspectd, tmp_path):
    """What is committed is there; the daemon does not notice."""
    path = tmp_path / "journal.db"
    with journal(path) as made:
        made.message(TOPIC, 1, body(1))
        assert made.write_through(10)
        assert inspectd("journal", "export", path, "--csv")[0] == 0
        code, out, _ = inspectd("journal", "verify", path)
        assert (code, "1 rows, 1 messages of 1 boots" in out) == (0, True)
        made.message(TOPIC, 2, body(2))
        assert made.write_through(10)
        assert made.told.oks == [True]


def test_the_configuration_may_name_the_journal(inspectd, path):
    """-c instead of the path; without journal.path it says so."""
    config = path.with_name("line.toml")
    cameras = '[model]\nbundle = "bundle"\n[[cameras]]\nname = "line"\nsource = "conveyor:"\n'
    cameras += '[[cameras.rois]]\nname = "part"\nbox = [0, 0, 64, 64]\n'
    config.write_text(cameras + '[journal]\npath = "journal.db"\n')
    assert inspectd("journal", "export", "-c", config, "--csv")[0] == 0
    config.write_text(cameras)
    code, _, err = inspectd("journal", "verify", "-c", config)
    assert (code, err) == (2, f"inspectd: {config}: journal.path is not set, so there is no journal\n")


def test_verify_says_what_is_fine_and_prints_the_head(inspectd, tmp_path):
    """The head can be noted elsewhere, and asked for again later."""
    path = tmp_path / "journal.db"
    rows = write(path, BOOT, [("boot", None, None, b"{}"), ("message", TOPIC, 1, body(1))])
    code, out, _ = inspectd("journal", "verify", path)
    assert code == 0
    assert "2 rows, 1 messages of 1 boots" in out
    assert f"head 2 {rows[-1].hash.hex()}" in out
    write(path, BOOT, [("message", TOPIC, 2, body(2))])
    code, out, _ = inspectd("journal", "verify", path, "--head", rows[-1].hash.hex().upper())
    assert (code, "the noted head is row 2" in out) == (0, True)
    code, out, _ = inspectd("journal", "verify", path, "--head", "ab" * 32)
    assert (code, "no row carries the noted head" in out) == (1, True)


def test_verify_of_a_changed_journal_exits_with_1(inspectd, path):
    """The fixture moved every time stamp: all six rows are named in one line."""
    code, out, _ = inspectd("journal", "verify", path)
    assert code == 1
    assert "FAULT  rows 1 to 6: do not fit" in out
    assert "NOT as it was written" in out


def newer(path):
    query(path, "PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("seq;verdict\n" * 500), "is no SQLite database"),
        (newer, "is a journal of version 2"),
        (lambda path: (path.unlink(), query(path, "CREATE TABLE songs (title)")), "is a database of another program"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        (lambda path: query(path, "DELETE FROM chain"), None),
    ],
)
@pytest.mark.parametrize("command", [["export", "--csv"], ["verify"]])
def test_what_is_no_journal_is_one_line(inspectd, path, command, prepare, says):
    """Exit code 2 and what to change; a journal that was damaged inside is the fault that verify is for."""
    prepare(path)
    code, out, err = inspectd("journal", command[0], path, *command[1:])
    if says:
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1
    else:
        assert code == 1
        assert "cannot be read any further" in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "j.db"],
        ["export", "j.db", "--csv", "--jsonl"],
        ["export", "--csv"],
        ["verify", "j.db", "-c", "line.toml"],
        ["verify", "j.db", "--head", "xyz"],
        ["export", "j.db", "--csv", "--since", "soon"],
    ],
)
def test_what_cannot_be_meant_is_refused(inspectd, arguments):
    """One line, exit code 2."""
    code, out, err = inspectd("journal", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_standard_output_is_one_line(path, unbuffered):
    """Exit code 1, also where the interpreter would notice only at its end."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "inspectd", "journal", "export", path, "--csv"],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "inspectd: No space left on device\n")


def test_who_reads_the_export_may_have_seen_enough(path):
    """`| head` ends it without a word about a broken pipe."""
    for number in range(3):
        write(path, f"b{number}", [("message", TOPIC, seq, body(seq, filler="x" * 2000)) for seq in range(1, 200)])
    command = f"{sys.executable} -m inspectd journal export {path} --jsonl | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
