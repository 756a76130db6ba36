"""Replay: exactly what a subscriber missed, from this boot and earlier ones, by a thread of its own."""

import json
import queue
import threading

import msgpack
import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from journal_kit import BOOT, TOPIC, body, journal, query, write
from properties import examples

from inspectd.verdict.control_schema import ControlError, ReplayPage, ReplayRequest
from inspectd.verdict.journal import ReplayDesk
from inspectd.verdict.journal import replay as replay_module


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


class Desk:
    """A started desk, asked one question at a time."""

    def __init__(self, path, boot=BOOT, flush=lambda timeout_s: True):
        self.desk = ReplayDesk(path, boot, flush)

    def __enter__(self):
        self.desk.start()
        return self

    def __exit__(self, *_):
        assert self.desk.stop(10)

    def ask(self, from_seq=1, topic=TOPIC, **more):
        answers = queue.Queue()
        self.desk.replay(ReplayRequest(op="replay", topic=topic, from_seq=from_seq, **more), answers.put)
        return answers.get(timeout=10)


def seqs(page):
    return [message["seq"] for message in page.messages]


def messages(*numbers, topic=TOPIC):
    return [("message", topic, seq, body(seq)) for seq in numbers]


def test_what_was_published_a_moment_ago_is_found(path):
    """The desk has the journal write what waits; messages come as they were, but marked as replayed."""
    with journal(path, commit_ms=1000) as made, Desk(path, flush=made.flush) as desk:
        for seq in range(1, 11):
            made.message(TOPIC, seq, body(seq))
            made.message("verdict/other/part/", seq, body(seq))
        page = desk.ask(4)
    assert isinstance(page, ReplayPage)
    assert page.messages == [json.loads(body(seq)) | {"replayed": True} for seq in range(4, 11)]
    assert (page.topic, page.boot_id, page.missing, page.next_seq, page.next_boot_id) == (TOPIC, BOOT, [], None, None)


def test_earlier_boots_are_walked_one_by_one(path):
    """Each page without more says which boot came next; the running one comes last, also before its first row."""
    write(path, BOOT, messages(1, 2))
    write(path, "boot-2", messages(1, 2, 3))
    with Desk(path, "boot-3") as desk:
        boots = [BOOT]
        while (page := desk.ask(boot_id=boots[-1])).next_boot_id:
            boots.append(page.next_boot_id)
        assert boots == [BOOT, "boot-2", "boot-3"]
        assert seqs(desk.ask(2, boot_id="boot-2")) == [2, 3]
        assert desk.ask().messages == []


def test_pages_are_bounded_and_go_on_where_they_ended(path):
    """By count and by bytes; a body beyond the bound comes alone, and nothing comes twice or is left out."""
    write(path, BOOT, [("message", TOPIC, seq, body(seq, filler="x" * 300_000)) for seq in range(1, 11)])
    write(path, BOOT, messages(*range(11, 41)))
    with Desk(path) as desk:
        found, sizes, start = [], [], 1
        while start:
            page = desk.ask(start, limit=10)
            found += seqs(page)
            sizes.append(len(page.messages))
            start = page.next_seq
    assert found == list(range(1, 41))
    assert sizes == [4, 4, 10, 10, 10, 2]


def test_what_is_not_in_the_journal_is_named(path):
    """Pruned at the front, lost in the middle, unreadable, and lost at the end without a later message."""
    write(path, BOOT, messages(5, 6, 9))
    write(path, BOOT, [("message", TOPIC, 10, b"\xff\xff"), *messages(11), ("message", TOPIC, 12, b"[1]")])
    told = {"rows": 5, "first_at": "", "last_at": "", "messages": {TOPIC: [[7, 8], [13, 15]]}, "others": {}}
    write(path, BOOT, [("lost", None, None, json.dumps(told).encode())])
    with Desk(path) as desk:
        page = desk.ask(2)
        assert (seqs(page), page.missing, page.next_seq) == (
            [5, 6, 9, 11],
            [(2, 4), (7, 8), (10, 10), (12, 12), (13, 15)],
            None,
        )
        page = desk.ask(2, limit=2)
        assert (seqs(page), page.missing, page.next_seq) == ([5, 6], [(2, 4)], 7)
        page = desk.ask(14)
        assert (seqs(page), page.missing) == ([], [(14, 15)])


def test_a_correction_takes_the_place_of_what_it_corrects(path):
    """A verdict that was withheld between journal and sending must not come back by a replay."""
    write(
        path, BOOT, [("message", TOPIC, 1, body(1, "pass")), *messages(2), ("message", TOPIC, 1, body(1, "no_result"))]
    )
    with Desk(path) as desk:
        page = desk.ask()
    assert [(m["seq"], m["verdict"]) for m in page.messages] == [(1, "no_result"), (2, "pass")]


def test_late_results_are_never_replayed(path):
    """They were not published."""
    write(path, BOOT, [*messages(1), ("late", TOPIC, None, body(2))])
    with Desk(path) as desk:
        assert seqs(desk.ask()) == [1]


def test_msgpack_comes_back_as_what_it_says(path):
    """The journal keeps bodies as on the wire; a reply is JSON."""
    write(path, BOOT, [("message", TOPIC, 1, msgpack.packb({"seq": 1, "verdict": "fail"}))])
    with Desk(path) as desk:
        assert desk.ask().messages == [{"seq": 1, "verdict": "fail", "replayed": True}]


def test_a_boot_that_nobody_knows_is_an_error(path):
    """And not an empty page, which would say that nothing was missed."""
    write(path, BOOT, messages(1))
    with Desk(path) as desk:
        assert desk.ask(boot_id="boot-0").code == "unknown_boot"


def test_a_journal_that_cannot_be_read_is_an_error(path):
    """Removed, or damaged: said, and the desk goes on."""
    with Desk(path) as desk:
        assert desk.ask().code == "journal_failing"
        write(path, BOOT, messages(1))
        assert seqs(desk.ask()) == [1]


def test_no_request_can_end_the_desk(path, monkeypatch):
    """A number that nobody reaches, SQL for a topic, a defect of ours: answered, and the next is too."""
    write(path, BOOT, messages(1))
    with Desk(path) as desk:
        assert desk.ask(2**53).messages == []
        with structlog.testing.capture_logs() as logs:
            monkeypatch.setattr(replay_module, "read_page", lambda *_: 1 // 0)
            assert desk.ask().code == "internal"
            monkeypatch.undo()
        assert [line["event"] for line in logs] == ["replay_failed"]
        assert desk.ask(topic="\0' OR 1=1 --").messages == []
        assert seqs(desk.ask()) == [1]


def test_a_journal_that_cannot_be_read_is_logged_once(path):
    """However often somebody asks."""
    with Desk(path) as desk, structlog.testing.capture_logs() as logs:
        for _ in range(3):
            desk.ask()
        write(path, BOOT, messages(1))
        desk.ask()
        path.unlink()
        desk.ask()
    assert [line["event"] for line in logs] == ["journal_not_readable"] * 2


def test_too_many_requests_are_refused_at_once(path):
    """Nobody waits in the caller's thread; what was taken is answered, at the latest when the desk stops."""
    write(path, BOOT, messages(1))
    inside, release, answers = threading.Event(), threading.Event(), queue.Queue()

    def slow(timeout_s):
        inside.set()
        return release.wait(10)

    desk = ReplayDesk(path, BOOT, slow)
    request = ReplayRequest(op="replay", topic=TOPIC, from_seq=1)
    desk.start()
    desk.replay(request, answers.put)
    assert inside.wait(10)
    for _ in range(replay_module.MAX_WAITING):
        desk.replay(request, answers.put)
    with pytest.raises(ControlError) as refused:
        desk.replay(request, answers.put)
    assert refused.value.code == "busy"
    assert not desk.stop(0)
    release.set()
    assert desk.stop(10)
    codes = [getattr(answer, "code", "page") for answer in (answers.get(timeout=10) for _ in range(1 + 64))]
    assert codes == ["page"] + ["stopping"] * 64
    with pytest.raises(ControlError) as refused:
        desk.replay(request, answers.put)
    assert refused.value.code == "stopping"


@examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    written=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30)), max_size=40),
    from_seq=st.integers(1, 31),
    limit=st.integers(1, 8),
)
def test_messages_and_missing_ranges_are_the_whole_truth(tmp_path, written, from_seq, limit):
    """For any content in any order: each number up to the newest comes once, as a message or as missing."""
    path = tmp_path / "any.db"
    path.unlink(missing_ok=True)
    entries = [("message", topic, seq, body(seq, at=at)) for at, (topic, seq) in enumerate(written)]
    write(path, BOOT, [("boot", None, None, b"{}"), *entries])
    newest = {seq: at for at, (topic, seq) in enumerate(written) if topic == "a" and seq >= from_seq}
    came, missing, start = {}, set(), from_seq
    with Desk(path) as desk:
        while start:
            page = desk.ask(start, topic="a", limit=limit)
            assert not came.keys() & set(seqs(page))
            came |= {message["seq"]: message["at"] for message in page.messages}
            missing |= {seq for first, last in page.missing for seq in range(first, last + 1)}
            start = page.next_seq
    assert came == newest
    assert list(came) == sorted(came)
    assert missing == set(range(from_seq, max(newest, default=0))) - newest.keys()


def test_a_reader_does_not_hold_up_the_writer(path):
    """The desk reads from a snapshot: while a page is being read, commits go on and the log begins again."""
    with journal(path, commit_ms=1) as made:
        made.message(TOPIC, 1, body(1))
        assert made.write_through(10)
        with Desk(path, flush=made.flush) as desk:
            for start in range(2, 3000, 300):
                for seq in range(start, start + 300):
                    made.message(TOPIC, seq, body(seq, filler="x" * 3000))
                assert made.write_through(10)
                assert desk.ask(start, limit=1000).next_seq is None
            assert made.told.lost == 0
        assert path.with_name("journal.db-wal").stat().st_size < 8_000_000
    assert query(path, "SELECT count(*) FROM rows") == [(3001,)]
