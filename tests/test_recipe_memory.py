"""Which recipe a start goes on with, after every kind of end of the one before."""

import errno
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest
from journal_kit import TOPIC, eventually, journal

from inspectd.recipe_memory import RecipeMemory
from inspectd.verdict.control_schema import ControlError
from inspectd.verdict.journal.store import Store

LINE = SimpleNamespace(recipe=None, recipes={"lid": None, "cap": None})
NONE, LID = {"recipe": None, "config": "0"}, {"recipe": "lid", "config": "1"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def at_start(path, settings=LINE):
    with journal(path, "later") as made:
        return RecipeMemory(made).at_start(settings)


def test_without_a_journal_it_is_the_configured_one():
    memory = RecipeMemory(None)
    memory.begin_change(LID)
    memory.settle(LID, known=True)
    assert memory.at_start(SimpleNamespace(recipe="cap", recipes=LINE.recipes)) == ("cap", True)


def test_what_was_in_force_is_gone_on_with(path):
    """The first start knows no other than the configured one."""
    assert at_start(path) == (None, True)
    with journal(path) as made:
        memory = RecipeMemory(made)
        memory.begin_change(LID)
        memory.settle(LID, known=True)
    assert at_start(path) == ("lid", True)
    assert at_start(path, SimpleNamespace(recipe=None, recipes={"cap": None})) == (None, False)


def test_an_end_in_the_middle_of_a_change_leaves_it_open(path):
    """Nobody was told which one it is."""
    with journal(path) as made:
        RecipeMemory(made).begin_change(LID)
    assert at_start(path) == ("lid", False)


def test_a_change_that_came_to_nothing_leaves_the_old_one(path):
    with journal(path) as made:
        memory = RecipeMemory(made)
        memory.begin_change(LID)
        memory.settle(NONE, known=True)
    assert at_start(path) == (None, True)


def test_one_that_nobody_chose_is_not_known_at_the_next_start_either(path):
    """As after a reload while nobody knows."""
    with journal(path) as made:
        RecipeMemory(made).settle(NONE, known=False)
    assert at_start(path) == (None, False)


def test_a_row_from_before_there_was_known_is(path):
    with journal(path) as made:
        made.event("recipe", LID)
    assert at_start(path) == ("lid", True)


@pytest.mark.parametrize("boot", ["the one that changed", "a later one"])
def test_a_journal_that_was_deleted_while_in_use_is_begun_with_it(path, boot):
    """Whoever tidies up, or a disk that was exchanged: the line does not go back to the configured recipe."""
    with journal(path) as made:
        RecipeMemory(made).settle(LID, known=True)
        assert made.flush(5)
        if boot == "the one that changed":
            path.unlink()
            eventually(lambda: path.exists() and made.state == "ok")
    if boot != "the one that changed":
        with journal(path, "b"):
            path.unlink()
            eventually(path.exists)
    assert at_start(path) == ("lid", True)


def test_a_journal_that_is_put_back_learns_what_was_chosen_meanwhile(path):
    """Moved away to be looked at, and back, while the daemon wrote another one."""
    files = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "")]
    with journal(path) as made:
        memory = RecipeMemory(made)
        memory.settle(NONE, known=True)
        for file in files:
            file.rename(f"{file}.away")
        eventually(lambda: path.exists() and made.state == "ok")
        memory.settle(LID, known=True)
        for file in files:
            file.unlink(missing_ok=True)
        for file in reversed(files):
            path.with_name(f"{file.name}.away").rename(file)
        made.message(TOPIC, 1, b"{}")
        eventually(lambda: made.flush(1))
    assert at_start(path) == ("lid", True)


@pytest.mark.parametrize("now", ["cap", None])
def test_what_the_file_names_since_then_was_chosen_later(path, now):
    """As a reload of the same edit would have it; a row of a line that had no recipes then chose none."""
    with journal(path) as made:
        memory = RecipeMemory(made)
        memory.at_start(SimpleNamespace(recipe="lid", recipes=LINE.recipes))
        memory.settle(NONE, known=True)
    assert at_start(path, SimpleNamespace(recipe="lid", recipes=LINE.recipes)) == (None, True)
    assert at_start(path, SimpleNamespace(recipe=now, recipes=LINE.recipes)) == (now, True)


def test_what_a_reload_found_in_the_file_is_what_was_named_then(path):
    with journal(path) as made:
        memory = RecipeMemory(made)
        memory.at_start(LINE)
        memory.reconfigured(SimpleNamespace(recipe="cap"))
        memory.settle(LID, known=True)
    assert at_start(path, SimpleNamespace(recipe="cap", recipes=LINE.recipes)) == ("lid", True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: b"\xff" + note[1:],
        lambda note: note.replace(b'"recipe"', b'"rebipe"'),
        lambda note: note.replace(b'"lid"', b'"cap"'),
        lambda note: b"[]",
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_note_of_the_recipe_is_not_believed(path, damage, kept):
    """A flipped bit; without its row, which ages, only what makes no sense can be found."""
    with journal(path) as made:
        RecipeMemory(made).settle(LID, known=True)
    with closing(sqlite3.connect(path)) as connection:
        ((note,),) = connection.execute("SELECT body FROM last_events WHERE kind = 'recipe'")
        connection.execute("UPDATE last_events SET body = ? WHERE kind = 'recipe'", (damage(note),))
        if not kept:
            connection.execute("DELETE FROM rows")
        connection.commit()
    believed = b'"cap"' in damage(note) and not kept
    assert at_start(path) == (("cap", True) if believed else (None, False))


def test_no_change_while_the_disk_fails(path, monkeypatch):
    """Whatever comes to disk later, and in whatever order the process ends: never the one that was refused."""
    with journal(path) as made:
        memory = RecipeMemory(made)
        memory.settle(NONE, known=True)

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as disk:
            for method in ("probe", "append"):
                disk.setattr(Store, method, full)
            made.event("challenge", {})
            eventually(lambda: made.state == "failing")
            with pytest.raises(ControlError) as refused:
                memory.begin_change(LID)
            assert refused.value.code == "journal_failing"
            assert at_start_elsewhere(path) == (None, True)
        eventually(lambda: made.state == "ok")
        eventually(lambda: made.flush(1))
        assert at_start_elsewhere(path) == ("lid", False), "killed before the next line"
        memory.settle(NONE, known=True)
    assert at_start(path) == (None, True)


def at_start_elsewhere(path):
    """What a start would find on disk at this moment."""
    copy = path.with_name("copy.db")
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    return at_start(copy)


def test_what_finds_no_room_in_the_journal_is_no_change(path, monkeypatch):
    """What was never handed over is not waited for."""
    with journal(path) as made:
        made.stop(10)
        with pytest.raises(ControlError):
            RecipeMemory(made).begin_change(LID)
    assert at_start(path) == (None, True)
