"""Writing: what is handed over is on disk within the bound, nobody waits for it, and what is lost is told."""

import os
import sqlite3
import stat
import threading
import time
from contextlib import closing

import pytest
import structlog
from journal_kit import BOOT, TOPIC, Metrics, body, eventually, journal, query, write

from inspectd.config import JournalConfig
from inspectd.errors import ConfigError
from inspectd.verdict.journal import Journal
from inspectd.verdict.journal.handover import HandOver
from inspectd.verdict.journal.reader import pages
from inspectd.verdict.journal.row import MAX_BODY_BYTES, entry
from inspectd.verdict.journal.store import Store
from inspectd.verdict.journal.verify import verify


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def rows(path, columns="kind, topic, seq"):
    return query(path, f"SELECT {columns} FROM rows ORDER BY number")


def holding(path):
    """Somebody else's write lock on the journal: the disk that does not answer."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


def test_what_is_handed_over_is_there_as_it_was(path):
    """Messages with topic, seq and body, a late result under the topic it would have had, events with their data."""
    with journal(path) as made:
        made.event("boot", {"version": "1", "at": stat})  # what JSON has no word for becomes text
        made.message(TOPIC, 1, body(1))
        made.message("status/line/", 1, b"\x82\xa1a\x01\xa1b\xff")
        made.late(body(2))
        assert made.write_through(10)
        assert rows(path) == [
            ("boot", None, None),
            ("message", TOPIC, 1),
            ("message", "status/line/", 1),
            ("late", TOPIC, None),
        ]
        assert [b for (b,) in rows(path, "body")][1:] == [body(1), b"\x82\xa1a\x01\xa1b\xff", body(2)]
        assert {boot for (boot,) in rows(path, "boot_id")} == {BOOT}
    assert verify(path).faults == []


def test_rows_are_committed_in_groups_within_the_bound(path):
    """Nobody asks for it: after commit_ms all that was handed over meanwhile is there, in one commit."""
    with journal(path, commit_ms=50) as made:
        since = time.monotonic()
        for seq in range(1, 101):
            made.message(TOPIC, seq, body(seq))
        made.told.until(lambda told: sum(n for n, _ in told.commits) == 100)
        assert 0.05 <= time.monotonic() - since < 2
        assert len(made.told.commits) == 1


def test_write_through_does_not_wait_for_the_group(path):
    """With a second to wait for company, a row that must be on disk now is there at once."""
    with journal(path, commit_ms=1000) as made:
        since = time.monotonic()
        made.message(TOPIC, 1, body(1))
        assert made.write_through(10)
        assert time.monotonic() - since < 0.9
        assert rows(path) == [("message", TOPIC, 1)]


def test_the_last_event_of_each_kind_is_found_at_the_next_start(path):
    """The newest counts, from whichever boot, also when retention has taken its row; this boot's own do not."""
    with journal(path) as made:
        assert made.last_event("recipe") is None
        made.event("recipe", {"name": "old"})
        made.event("recipe", {"name": "new"})
        assert made.last_event("recipe") is None
    with journal(path, "boot-2", max_rows=1000) as made:
        for seq in range(1, 3001):
            made.message(TOPIC, seq, b"{}")
        assert made.write_through(10)
        assert made.last_event("recipe") == {"name": "new"}
    assert ("recipe", None, None) not in rows(path)
    with journal(path, "boot-3") as made:
        assert (made.last_event("recipe"), made.last_event("model")) == ({"name": "new"}, None)


def test_both_a_message_and_its_correction_stay(path):
    """The same seq twice: no error, two rows, an intact chain."""
    with journal(path) as made:
        made.message(TOPIC, 1, body(1, "pass"))
        made.message(TOPIC, 1, body(1, "no_result"))
    assert rows(path, "seq, json_extract(body, '$.verdict')") == [(1, "pass"), (1, "no_result")]
    assert verify(path).faults == []


def test_the_caller_never_waits_for_the_disk(path):
    """While the disk does not answer, handing over is as quick as ever; afterwards everything is there."""
    with journal(path, commit_ms=1) as made, holding(path):
        since = time.monotonic()
        for seq in range(1, 5001):
            made.message(TOPIC, seq, body(seq))
        assert time.monotonic() - since < 0.5  # one commit alone would wait for a second here
        assert not made.write_through(0.05)
    assert verify(path).messages == 5000


def test_a_disk_that_fails_is_a_state_and_is_tried_again(path, monkeypatch):
    """failing with a reason and one log line, no lost row; ok with one log line once it works again."""
    monkeypatch.setattr("inspectd.verdict.journal.database.BUSY_S", 0.1)
    with journal(path) as made, structlog.testing.capture_logs() as logs:
        with holding(path):
            made.message(TOPIC, 1, body(1))
            made.told.until(lambda told: told.oks == [True, False])
            assert (made.state, made.why) == ("failing", f"{path}: database is locked")
            since = time.monotonic()
            assert not made.write_through(10)
            assert time.monotonic() - since < 5  # it knows, and does not wait
        made.told.until(lambda told: told.oks == [True, False, True])
        assert (made.state, made.why, made.told.lost) == ("ok", None, 0)
        assert made.write_through(10)
        eventually(lambda: len(logs) == 2)
        assert [line["event"] for line in logs] == ["journal_failing", "journal_recovered"]
    assert rows(path) == [("message", TOPIC, 1)]


def test_a_disk_that_hangs_is_a_state(path, monkeypatch):
    """The thread is stuck in a write: whoever asks for the state finds out, and verdicts go on."""
    monkeypatch.setattr("inspectd.verdict.journal.health.STUCK_S", 0.1)
    release = threading.Event()
    with journal(path, commit_ms=1) as made:
        monkeypatch.setattr("inspectd.verdict.journal.store.Store.append", lambda *_: release.wait(10))
        made.message(TOPIC, 1, body(1))
        eventually(lambda: made.state == "failing")
        assert "has not answered" in made.why
        assert made.told.oks == [True, False]
        assert not made.write_through(10)
        release.set()
        made.told.until(lambda told: told.oks == [True, False, True])


def test_what_does_not_fit_is_lost_and_told(path, monkeypatch):
    """Full: lost rows are counted, the state says so, and in the chain a row stands in their place."""
    monkeypatch.setattr("inspectd.verdict.journal.journal.HandOver", lambda: HandOver(capacity_rows=100))
    monkeypatch.setattr("inspectd.verdict.journal.handover.CALM_S", 0.05)
    monkeypatch.setattr("inspectd.verdict.journal.journal.IDLE_S", 0.05)
    monkeypatch.setattr("inspectd.verdict.journal.database.BUSY_S", 0.1)
    with journal(path, commit_ms=1) as made:
        made.event("boot", {})
        assert made.write_through(10)
        with holding(path):
            for seq in range(1, 301):
                made.message(TOPIC, seq, body(seq))
            made.event("model", {"sha256": "ab"})
            assert made.told.lost == 201
            assert made.state == "failing"
            assert not made.flush(0)
        eventually(lambda: made.state == "ok")
        assert made.flush(10)
        assert not made.write_through(10)  # what was lost since the last time will never be through
        made.message(TOPIC, 301, body(301))
        assert made.write_through(10)
    found = verify(path)
    assert found.faults == []
    assert len(found.lost) == 1
    assert found.lost[0].startswith("201 rows were never written")
    assert found.lost[0].endswith(f"{TOPIC} 101–300; 1 of kind model")
    assert [row[0] for row in rows(path)] == ["boot", *["message"] * 100, "lost", "message"]


def test_the_queue_is_bounded_by_bytes_too():
    """A few large bodies fill it; once full it takes nothing until half is free, so that a loss is one range."""
    queue = HandOver(capacity_rows=1000, capacity_bytes=1000)
    large = entry("message", TOPIC, 1, b"x" * 400)
    assert [queue.put(large) for _ in range(3)] == [True, True, False]
    assert not queue.put(entry("message", TOPIC, 2, b""))
    batch = queue.take(0, 0)
    queue.done(batch)
    assert queue.put(large)
    assert [waiting.kind for waiting in queue.take(0, 0)] == ["lost", "message"]


@pytest.mark.parametrize(
    ("topic", "seq", "data"),
    [
        ("verdict/\udcff/x/", 1, b"{}"),
        (TOPIC, 2**63, b"{}"),
        (TOPIC, "1", b"{}"),
        (TOPIC, 1, b"x" * (MAX_BODY_BYTES + 1)),
    ],
)
def test_what_can_be_no_row_is_lost_alone(path, topic, seq, data):
    """It is counted and logged; its neighbours in the same commit are written."""
    with journal(path) as made, structlog.testing.capture_logs() as logs:
        made.message(TOPIC, 7, body(7))
        made.message(topic, seq, data)
        made.message(TOPIC, 8, body(8))
        assert not made.write_through(10)
        assert made.told.lost == 1
        assert made.write_through(10)
        assert [line["event"] for line in logs][:1] == ["journal_row_lost"]
    assert [row for row in rows(path) if row[0] == "message"] == [("message", TOPIC, 7), ("message", TOPIC, 8)]
    assert [row[0] for row in rows(path)].count("lost") == 1


def test_a_commit_is_flushed_to_the_disk(path):
    """What kill -9 cannot show: the settings that make a commit outlive a power cut."""
    store = Store(path)
    pragmas = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    store.close()
    assert pragmas == ["wal", 2]  # 2 is FULL


def test_an_event_may_hold_anything(path):
    """Values that JSON does not know, and a file name that is no UTF-8."""
    with journal(path) as made:
        made.event("model", {"bundle": path, "name": os.fsdecode(b"caf\xe9"), "what": {1, 2}})
    with journal(path, "boot-2") as made:
        assert made.last_event("model") == {"bundle": str(path), "name": "caf\udce9", "what": "{1, 2}"}
    assert verify(path).faults == []


def test_a_body_beyond_all_bounds_blocks_nothing():
    """More bytes than the queue may hold: it is lost, the next is taken."""
    queue = HandOver(capacity_rows=10, capacity_bytes=1000)
    assert not queue.put(entry("message", TOPIC, 1, b"x" * 2000))
    assert queue.put(entry("message", TOPIC, 2, b"x"))
    assert [waiting.kind for waiting in queue.take(0, 0)] == ["lost", "message"]


def test_two_names_of_one_journal_are_one_journal(path):
    """A symbolic link does not get around the lock."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    with journal(path), pytest.raises(ConfigError, match="in use by another inspectd"):
        Journal(JournalConfig(path=link), "boot-2", Metrics()).start()


def test_strange_bodies_are_written_as_they_are(path):
    """A megabyte, no UTF-8, nothing at all: the journal does not look into messages."""
    bodies = [b"\xff\xfe\x00", b"", b"{" + b"x" * 1_000_000, b"{" * 100_000]
    with journal(path) as made:
        for seq, data in enumerate(bodies, start=1):
            made.message(TOPIC, seq, data)
            made.late(data)
        assert made.write_through(10)
    assert [data for (data,) in query(path, "SELECT body FROM rows WHERE seq > 0 ORDER BY number")] == bodies
    assert verify(path).faults == []


def test_rows_keep_their_order_when_the_clock_is_stepped_back(path, monkeypatch):
    """Numbers order rows; the time is only told."""
    with journal(path) as made:
        made.message(TOPIC, 1, body(1))
        monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000_000_000_000)
        made.message(TOPIC, 2, body(2))
    (first, second) = rows(path, "at_us, seq")
    assert second[0] < first[0]
    assert (first[1], second[1]) == (1, 2)
    assert verify(path).faults == []


def test_retention_by_rows(path):
    """Never more than max_rows and one group; what is left still verifies, from its new beginning."""
    with journal(path, commit_ms=1, max_rows=1000) as made:
        for seq in range(1, 6001):
            made.message(TOPIC, seq, b"{}")
            if seq % 500 == 0:
                assert made.write_through(10)
                assert query(path, "SELECT count(*) FROM rows")[0][0] <= 1500
        made.told.until(lambda told: told.size and told.size[0] <= 1000)
    found = verify(path)
    assert (found.faults, found.pruned, found.first_number > 5000, found.boots) == ([], True, True, 1)


def test_verify_may_be_overtaken_by_retention(path, monkeypatch):
    """Rows that were pruned between two pages are no fault, and neither are their messages."""
    monkeypatch.setattr("inspectd.verdict.journal.reader.PAGE_ROWS", 100)

    def pages_and_more(connection):
        for number, page in enumerate(pages(connection)):
            yield page
            if number == 0:
                publish(901, 2500)
                eventually(lambda: query(path, "SELECT first_number FROM chain")[0][0] > 1000)

    def publish(first, last):
        for seq in range(first, last + 1):
            made.message(TOPIC, seq, b"{}")
        assert made.write_through(10)

    with journal(path, commit_ms=1, max_rows=1000) as made:
        made.event("boot", {})
        publish(1, 900)
        monkeypatch.setattr("inspectd.verdict.journal.verify.pages", pages_and_more)
        found = verify(path)
    assert found.faults == []
    assert found.rows < 2000 < found.head_number


def test_retention_by_bytes(path):
    """The database and its write-ahead log together stay below max_mb, at every moment."""
    largest = 0
    with journal(path, commit_ms=1, max_mb=16) as made:
        for seq in range(1, 6001):
            made.message(TOPIC, seq, b"x" * 4000)
            if seq % 200 == 0:
                assert made.write_through(10)
                largest = max(largest, sum(file.stat().st_size for file in path.parent.glob("journal.db*")))
        assert made.told.lost == 0
    assert 6_000_000 < largest <= 16_000_000
    found = verify(path)
    assert (found.faults, found.pruned) == ([], True)


def test_a_lowered_limit_gives_the_space_back(path, monkeypatch):
    """In small steps while nothing else is to do, and the file shrinks."""
    monkeypatch.setattr("inspectd.verdict.journal.journal.IDLE_S", 0.01)
    with journal(path, max_mb=64) as made:
        for seq in range(1, 5001):
            made.message(TOPIC, seq, b"x" * 4000)
        assert made.write_through(20)
    assert path.stat().st_size > 20_000_000
    with journal(path, "boot-2", max_mb=16) as made:
        eventually(lambda: path.stat().st_size < 16_000_000)
        assert made.state == "ok"
    assert verify(path).faults == []


def test_a_deleted_journal_is_begun_again(path):
    """Somebody removes the file under the running daemon: what comes then is in a new one."""
    with journal(path, commit_ms=1) as made:
        made.message(TOPIC, 1, body(1))
        assert made.write_through(10)
        path.unlink()
        made.message(TOPIC, 2, body(2))
        made.told.until(lambda told: told.oks == [True, False, True])
        made.message(TOPIC, 3, body(3))
        assert made.write_through(10)
        assert rows(path) == [("message", TOPIC, 2), ("message", TOPIC, 3)]
    assert verify(path).faults == []


def test_a_deleted_log_loses_nothing(path):
    """Only the write-ahead log is removed: what is in it is saved, and the journal goes on."""
    with journal(path, commit_ms=1) as made:
        made.message(TOPIC, 1, body(1))
        assert made.write_through(10)
        path.with_name("journal.db-wal").unlink()
        made.message(TOPIC, 2, body(2))
        made.told.until(lambda told: told.oks == [True, False, True])
        assert made.write_through(10)
        assert verify(path).messages == 2
    assert verify(path).faults == []


def test_the_second_daemon_on_one_journal_is_refused(path):
    """It names the first; when that is gone, it may."""
    with journal(path), pytest.raises(ConfigError, match=f"in use by another inspectd .process {os.getpid()}"):
        Journal(JournalConfig(path=path), "boot-2", Metrics()).start()
    with journal(path, "boot-2") as made:
        assert made.state == "ok"


def not_a_database(path):
    path.write_text("verdicts\n" * 1000)


def newer(path):
    write(path, BOOT, [("boot", None, None, b"{}")])
    query(path, "PRAGMA user_version = 2")


def of_another_program(path):
    query(path, "CREATE TABLE songs (title)")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (not_a_database, "is no SQLite database"),
        (newer, "is a journal of version 2; this inspectd knows 1: update inspectd"),
        (of_another_program, "is a database of another program"),
        (lambda path: path.mkdir(), "is a folder; name a file in it"),
    ],
)
def test_what_is_no_journal_is_refused_and_left_alone(path, prepare, says):
    """One line that names the key and the file; the file is as it was."""
    prepare(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigError, match=rf"^journal\.path: {path}: {says}") as raised:
        Journal(JournalConfig(path=path), BOOT, Metrics()).start()
    assert "\n" not in str(raised.value)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_folder_that_is_not_there_is_named(path):
    """One line that says what to create."""
    path = path.parent / "nowhere" / "journal.db"
    with pytest.raises(ConfigError, match=f"there is no folder {path.parent}; create it"):
        Journal(JournalConfig(path=path), BOOT, Metrics()).start()


def test_an_empty_file_is_a_place_for_a_journal(path):
    """As `touch` or a start on a full disk leaves it."""
    path.touch()
    with journal(path) as made:
        made.message(TOPIC, 1, body(1))
    assert verify(path).messages == 1


def test_stop_commits_what_waits(path):
    """Also what was handed over a moment ago, without waiting for its group; twice does no harm."""
    told = Metrics()
    made = Journal(JournalConfig(path=path, commit_ms=1000), BOOT, told)
    made.start()
    for seq in range(1, 3001):
        made.message(TOPIC, seq, body(seq))
    assert made.stop(10)
    assert made.stop(10)
    assert verify(path).messages == 3000
    made.message(TOPIC, 3001, body(3001))  # too late, but harmless
    assert told.lost == 1


def test_a_commit_that_reached_the_disk_although_it_failed_is_not_repeated(path, monkeypatch):
    """The last fsync reports an error, the rows are there all the same: they are not written twice."""
    append = Store.append

    def append_and_fail(store, rows):
        monkeypatch.undo()
        append(store, rows)
        raise sqlite3.OperationalError("disk I/O error")

    with journal(path, commit_ms=1) as made:
        monkeypatch.setattr(Store, "append", append_and_fail)
        made.message(TOPIC, 1, body(1))
        made.told.until(lambda told: told.oks == [True, False, True])
        made.message(TOPIC, 2, body(2))
    assert rows(path) == [("message", TOPIC, 1), ("message", TOPIC, 2)]
    assert verify(path).faults == []
