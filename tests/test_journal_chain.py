"""The chain: whatever is done to a row behind the daemon's back, `verify` says that it was done and to which row."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from journal_kit import BOOT, TOPIC, body, query, write
from properties import examples

from inspectd.verdict.journal.loss import without
from inspectd.verdict.journal.row import Row, chain_hash
from inspectd.verdict.journal.verify import verify

ROWS = 24


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two boots: an event and messages of two topics each."""
    path = tmp_path_factory.mktemp("chain") / "journal.db"
    for boot in (BOOT, "boot-2"):
        entries = [("boot", None, None, b'{"version": "1"}'), ("config", None, None, b'{"hash": "c0"}')]
        for seq in range(1, (ROWS - 4) // 4 + 1):
            entries.append(("message", TOPIC, seq, body(seq)))
            entries.append(("message", "status/line/", seq, body(seq)))
        write(path, boot, entries)
    return path


@pytest.fixture
def path(template, tmp_path):
    return shutil.copy(template, tmp_path / "journal.db")


def faults(path, **options):
    return verify(path, **options).faults


def test_an_untouched_journal_is_fine(path):
    """Rows, boots and messages are counted, the head is the last row's hash, and there is no fault."""
    found = verify(path)
    assert (found.rows, found.boots, found.messages, found.faults, found.lost) == (ROWS, 2, ROWS - 4, [], [])
    assert [(found.head_hash,)] == query(path, "SELECT lower(hex(hash)) FROM rows WHERE number = ?", ROWS)


@pytest.mark.parametrize("number", [1, 9, ROWS])
@pytest.mark.parametrize(
    "change",
    [
        "body = CAST(replace(body, 'pass', 'fail') || ' ' AS BLOB)",
        "at_us = at_us - 1",
        "boot_id = boot_id || 'x'",
        "kind = 'late'",
        "topic = 'verdict/other/part/'",
        "seq = 77",
    ],
)
def test_a_changed_row_is_named(path, number, change):
    """Any column of any row, the first and the last too: exactly that row, no other."""
    query(path, f"UPDATE rows SET {change} WHERE number = ?", number)
    assert any(line.startswith(f"row {number}: was changed") for line in faults(path))
    assert not [line for line in faults(path) if line.startswith("row") and not line.startswith(f"row {number}:")]


def test_a_changed_hash_is_named(path):
    """The row is as it was, its hash is not: told apart by the row behind it."""
    query(path, "UPDATE rows SET hash = ? WHERE number = 9", b"\0" * 32)
    assert faults(path) == ["row 9: has a changed hash"]


def test_a_row_that_was_rewritten_with_its_hash_shows_at_the_next(path):
    """Whoever makes the hash fit too breaks the row behind; the message says that it may be either."""
    rewrite(path, 9, body=body(99, "fail"))
    assert faults(path) == ["row 10: was changed (or row 9 was, and its hash with it)"]


def test_missing_rows_are_named_and_so_are_their_messages(path):
    """Two rows in the middle: their numbers, and which messages they were."""
    query(path, "DELETE FROM rows WHERE number IN (5, 6)")
    assert faults(path) == [
        "rows 5 to 6: are missing",
        f"message 2 of {TOPIC} in boot {BOOT}: missing, and no loss is recorded",
        f"message 2 of status/line/ in boot {BOOT}: missing, and no loss is recorded",
    ]


def test_a_missing_beginning_is_named(path):
    """Retention moves the anchor with the rows; whoever only deletes does not."""
    query(path, "DELETE FROM rows WHERE number <= 3")
    assert "rows 1 to 3: are missing" in faults(path)


def test_a_cut_tail_is_named(path):
    """The head is kept apart, so the last rows cannot go unseen."""
    query(path, "DELETE FROM rows WHERE number > 20")
    assert f"rows 21 to {ROWS}: are missing: the end was cut off" in faults(path)


def test_a_tail_cut_with_its_head_shows_by_a_noted_head(path):
    """The chain alone cannot tell; a head that was noted elsewhere can."""
    noted = verify(path).head_hash
    (hash_20,) = query(path, "SELECT hash FROM rows WHERE number = 20")[0]
    query(path, "DELETE FROM rows WHERE number > 20")
    query(path, "UPDATE chain SET head_number = 20, head_hash = ?", hash_20)
    assert faults(path) == []
    (line,) = faults(path, noted_head=noted)
    assert "the journal was rewritten, cut or replaced" in line


def test_a_noted_head_is_found_again_after_the_journal_grew(path):
    """Rows behind it are what a journal is for."""
    noted = verify(path).head_hash
    write(path, "boot-3", [("boot", None, None, b"{}")])
    found = verify(path, noted[:16])
    assert (found.noted_number, found.faults) == (ROWS, [])


@pytest.mark.parametrize(("a", "b"), [(5, 6), (5, 7), (3, 20), (1, 12), (12, ROWS)])
def test_exchanged_rows_are_named(path, a, b):
    """Everything but the number goes to the other place, hashes too; neighbours are the hard case."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for old, new in ((a, -1), (b, a), (-1, b)):
            connection.execute("UPDATE rows SET number = ? WHERE number = ?", (new, old))
    assert f"rows {a} and {b}: were exchanged" in faults(path)
    assert not [line for line in faults(path) if line.startswith("row ")]


def test_a_row_behind_the_head_is_named(path):
    """Also when it is made to fit: the head did not move with it."""
    rewrite(path, ROWS, number=ROWS + 1, append=True)
    assert faults(path) == [f"row {ROWS + 1}: was inserted"]


def test_a_row_inserted_between_two_boots_is_named_after_the_daemon_went_on(path):
    """The daemon writes behind it, but chains to its own head."""
    rewrite(path, ROWS, number=ROWS + 1, append=True, body=body(11, "pass"))
    write(path, "boot-3", [("boot", None, None, b"{}"), ("message", TOPIC, 1, body(1))])
    assert f"row {ROWS + 1}: was inserted" in faults(path)


def test_a_row_inserted_in_the_middle_is_found(path):
    """Numbers behind it had to be moved, and nothing fits from there on."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE rows SET number = -number - 1 WHERE number >= 10")
        connection.execute("UPDATE rows SET number = -number WHERE number < 0")
        connection.execute("UPDATE chain SET head_number = head_number + 1")
    rewrite(path, 9, number=10, append=True)
    assert any(line.startswith("rows 11 to ") for line in faults(path))


def test_the_tables_that_repeat_the_rows_are_compared_with_them(path):
    """A replay goes by `boots`, a start by `last_events`: they cannot say something else than the chain."""
    query(path, "UPDATE boots SET first_number = 2 WHERE boot_id = 'boot-2'")
    query(path, "DELETE FROM last_events WHERE kind = 'config'")
    assert faults(path) == [
        "the table boots does not agree with the rows",
        "the table last_events does not agree with the rows",
    ]


def test_damage_to_the_file_is_a_fault_and_no_traceback(path):
    """A page of noise in the middle: what stands before it is still judged."""
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(data)
    assert any("damaged" in line for line in faults(path))


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(1, ROWS), seed=st.data())
def test_nothing_that_is_done_to_one_row_goes_unseen(template, tmp_path, number, seed):
    """Any column, any other value: some fault names the row or the one behind it."""
    column = seed.draw(st.sampled_from(["at_us", "kind", "boot_id", "topic", "seq", "body", "hash"]))
    values = {
        "at_us": st.integers(-(2**63), 2**63 - 1),
        "seq": st.none() | st.integers(-(2**63), 2**63 - 1),
        "topic": st.none() | TEXT,
        "body": st.binary(max_size=50),
        "hash": st.binary(max_size=40),
    }
    value = seed.draw(values.get(column, TEXT))
    path = shutil.copy(template, tmp_path / "tampered.db")
    (before,) = query(path, f"SELECT {column} FROM rows WHERE number = ?", number)[0]
    query(path, f"UPDATE rows SET {column} = ? WHERE number = ?", value, number)
    if value == before:
        assert faults(path) == []
    else:
        assert any(f"{n}" in line for line in faults(path) for n in (number, number + 1) if line.startswith("row"))


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
ROW = st.builds(
    Row,
    number=st.integers(0, 2**62),
    at_us=st.integers(-(2**62), 2**62),
    kind=TEXT,
    boot_id=TEXT,
    topic=st.none() | TEXT,
    seq=st.none() | st.integers(1, 2**62),
    body=st.binary(max_size=16),
    hash=st.just(b""),
)


@examples(150)
@given(a=ROW, b=ROW, cut=st.integers(0, 8))
def test_two_rows_have_one_hash_only_if_they_are_equal(a, b, cut):
    """Nor does text that moves from one column to the next give the same hash: lengths stand before texts."""
    previous = bytes(32)
    assert (chain_hash(previous, a) == chain_hash(previous, b)) == (a == b)
    moved = a._replace(kind=a.kind[:cut], boot_id=a.kind[cut:] + a.boot_id)
    assert (chain_hash(previous, a) == chain_hash(previous, moved)) == (a == moved)
    assert chain_hash(b"\1" * 32, a) != chain_hash(previous, a)


def test_the_hash_can_be_computed_from_its_description_alone(path):
    """What `docs/journal.md` says suffices to check a journal with other tools."""
    import hashlib

    before, *_ = query(path, "SELECT first_before FROM chain")[0]
    for number, at_us, kind, boot, topic, seq, data, stored in query(path, "SELECT * FROM rows ORDER BY number"):
        numbers = [number, at_us, -1 if seq is None else seq]
        lengths = [len(kind), len(boot), 2**64 - 1 if topic is None else len(topic), len(data)]
        fixed = b"".join(n.to_bytes(8, "big", signed=n < 0) for n in [*numbers, *lengths])
        text = (kind + boot + (topic or "")).encode()
        before = hashlib.sha256(b"inspectd.journal/1\n" + before + fixed + text + data).digest()
        assert before == stored


def test_what_is_told_to_be_lost_is_no_fault(tmp_path):
    """A gap that a row of kind `lost` explains is printed; one that nothing explains is a fault."""
    told = {
        "rows": 2,
        "first_at": "a",
        "last_at": "b",
        "messages": {TOPIC: [[2, 3]]},
        "others": {},
    }
    path = tmp_path / "journal.db"
    lost = ("lost", None, None, json.dumps(told).encode())
    write(path, BOOT, [("boot", None, None, b"{}"), ("message", TOPIC, 1, b"{}"), lost, ("message", TOPIC, 4, b"{}")])
    found = verify(path)
    assert found.faults == []
    assert found.lost == [f"2 rows were never written, a to b: {TOPIC} 2–3"]
    write(path, BOOT, [("message", TOPIC, 6, b"{}")])
    assert faults(path) == [f"message 5 of {TOPIC} in boot {BOOT}: missing, and no loss is recorded"]


@given(st.integers(0, 20), st.integers(0, 20), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))
def test_what_is_left_of_a_range(first, last, covered):
    """Against sets of numbers."""
    left = {n for a, b in without((first, last), [c for c in covered if c[0] <= c[1]]) for n in range(a, b + 1)}
    assert left == set(range(first, last + 1)) - {n for a, b in covered for n in range(a, b + 1)}


def rewrite(path, at, *, append=False, **columns):
    """Replace a row, or put a copy of it elsewhere, with a hash that fits behind the row before its place."""
    with closing(sqlite3.connect(path)) as connection, connection:
        old = Row(*connection.execute("SELECT * FROM rows WHERE number = ?", (at,)).fetchone())
        new = old._replace(**columns)
        (previous,) = connection.execute("SELECT hash FROM rows WHERE number = ?", (new.number - 1,)).fetchone()
        new = new._replace(hash=chain_hash(previous, new))
        if not append:
            connection.execute("DELETE FROM rows WHERE number = ?", (at,))
        connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", new)
