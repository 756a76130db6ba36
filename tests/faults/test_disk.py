"""Disks that are full, broken, hanging or gone under the running daemon: the journal's, and that of the pictures."""

import json

import cv2
import pytest
from clip_line import VERDICTS, ClipLine, truth
from disks import Disk, SlowDisk
from journal_kit import eventually, query
from plant import Plant
from row import fault

from inspectd.verdict.journal.verify import verify

GO_ON = (
    "verdicts go on at their pace; the heartbeat says `journal: failing`; what could not be written waits "
    "(50,000 rows) and is written afterwards, in its order"
)
HOLD_BACK = (
    "nothing passes: a good part is `no_result(not_ready)`, READY is off and the heartbeat says `fault`; "
    "fails go out; the journal says afterwards what was published"
)
WRITTEN = "the journal's hand-over and its retries"
HELD = "a pass that is not on disk is withheld where every verdict passes"
KEPT = "verdicts go on and say `evidence: null`; the log says why and how many pictures were lost"
REQUIRED = '`journal.sync = "before_publish"`, `required = true`'

FULL = "a file takes the last byte of its disk"
BROKEN = (
    "the kernel makes its disk read-only (ext4, `remount,abort`), as after a read error; then it is checked and "
    "mounted again"
)
HANGS = "no write and no flush of its files comes back (LD_PRELOAD)"
GONE = "its disk is unmounted (`umount -l`), then mounted again"


@pytest.fixture
def line(tmp_path):
    return ClipLine(tmp_path)


@pytest.fixture
def disk(tmp_path):
    """A disk at tmp_path/disk."""
    with Disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def slow_disk(tmp_path):
    with SlowDisk(tmp_path / "disk") as disk:
        yield disk


class Journaled(Plant):
    """A plant whose journal lies on the disk; at the end the journal must say what was published."""

    def __init__(self, line, disk, *, required=False):
        self.path = disk.folder / "journal.db"
        keys = 'sync = "before_publish"\nrequired = true' if required else ""
        config = line.config(f'[journal]\npath = "disk/journal.db"\n{keys}')
        super().__init__(config, truth, env=getattr(disk, "env", None))

    def journal(self, state, timeout_s=20.0):
        """The next heartbeat that says so of the journal."""
        return self.subscriber.until(lambda m: m["topic"] == "heartbeat/" and m["journal"] == state, timeout_s)

    def finish(self):
        super().finish()
        found = verify(self.path)
        assert (found.faults, found.lost) == ([], [])
        rows = query(self.path, "SELECT seq, body FROM rows WHERE topic = ? ORDER BY number", VERDICTS)
        journaled = {seq: json.loads(body)["verdict"] for seq, body in rows}  # a later row of a seq is a correction
        assert {m["seq"]: m["verdict"] for m in self.fresh}.items() <= journaled.items()


def go_on(plant, watch, inject, end):
    """Verdicts go on while the journal fails, and it recovers by itself. For a journal that is not required."""
    plant.judgement("pass")
    watch.injected()
    inject()
    plant.journal("failing")
    watch.detected()
    for verdict in ("pass", "fail", "pass"):
        assert plant.judgement(verdict)["latency_ms"]["total"] < 500  # max_age_ms: later it would be stale
    watch.over()
    end()
    plant.journal("ok")
    watch.recovered()
    plant.judgement("pass")


def hold_back(plant, watch, inject, end):
    """No pass from the moment that it shows; fails go on; passes come back. For a journal that is required."""
    plant.judgement("pass")
    watch.injected()
    inject()
    plant.subscriber.until(lambda m: m.get("reason") == "not_ready")
    watch.detected()
    since = len(plant.fresh)
    assert "journal: failing" in plant.state("fault")["reason"]
    assert not plant.ready
    plant.judgement("fail")
    plant.subscriber.until(lambda m: m.get("reason") == "not_ready")
    held = plant.fresh[since:]
    assert [m for m in held if m["verdict"] == "pass"] == []
    watch.over()
    end()
    plant.judgement("pass")
    watch.recovered()
    plant.state("ready")


# -- the journal, written behind the verdicts -----------------------------------------------------------------


@fault("Disk", "Journal: disk full", injected=FULL, does=GO_ON, protection=WRITTEN, detect_s=5, recover_s=8)
def test_the_journal_s_disk_is_full(line, disk, watch):
    """Nothing is lost, and no verdict waits."""
    with Journaled(line, disk) as plant:
        go_on(plant, watch, disk.fill, disk.make_room)


@pytest.mark.soak
@fault("Disk", "Journal: disk read-only", injected=BROKEN, does=GO_ON, protection=WRITTEN, detect_s=5, recover_s=8)
def test_the_journal_s_disk_is_read_only(line, disk, watch):
    """It lets go of the broken file, so that the disk can be repaired, and goes on in it."""
    with Journaled(line, disk) as plant:
        go_on(plant, watch, disk.break_down, disk.repair)


@pytest.mark.soak
@fault(
    "Disk",
    "Journal: disk hangs",
    injected=HANGS,
    does=GO_ON,
    protection="the thread of its own",
    detect_s=9,
    recover_s=5,
)
def test_the_journal_s_disk_hangs(line, slow_disk, watch):
    """Its thread cannot say so any more: whoever asks for the state finds it."""
    with Journaled(line, slow_disk) as plant:
        go_on(plant, watch, slow_disk.hang, slow_disk.answer)


@fault(
    "Disk",
    "Journal: disk gone",
    injected=GONE,
    does=f"{GO_ON}; nothing is written to the empty mount point",
    protection="a mount point without its disk is refused",
    detect_s=5,
    recover_s=8,
)
def test_the_journal_s_disk_is_gone(line, disk, watch):
    """It does not begin another journal on the disk around it, which would hide as soon as the right one is back."""

    def end():
        assert list(disk.folder.iterdir()) == []
        disk.come_back()

    with Journaled(line, disk) as plant:
        go_on(plant, watch, disk.vanish, end)


# -- the journal, required ----------------------------------------------------------------------------------------


@fault(
    "Disk",
    "Journal required: disk full",
    injected=FULL,
    does=HOLD_BACK,
    protection=HELD,
    detect_s=5,
    recover_s=8,
    settings=REQUIRED,
)
def test_nothing_passes_on_a_full_disk_when_it_is_required(line, disk, watch):
    """A line that must have its records stops without them."""
    with Journaled(line, disk, required=True) as plant:
        hold_back(plant, watch, disk.fill, disk.make_room)


@pytest.mark.soak
@fault(
    "Disk",
    "Journal required: disk read-only",
    injected=BROKEN,
    does=HOLD_BACK,
    protection=HELD,
    detect_s=5,
    recover_s=8,
    settings=REQUIRED,
)
def test_nothing_passes_on_a_broken_disk_when_it_is_required(line, disk, watch):
    """The same where the kernel takes the disk away for writing."""
    with Journaled(line, disk, required=True) as plant:
        hold_back(plant, watch, disk.break_down, disk.repair)


@fault(
    "Disk",
    "Journal required: disk hangs",
    injected=HANGS,
    does=f"{HOLD_BACK}; a verdict waits 0.1 s for the disk, never longer",
    protection=HELD,
    detect_s=3,
    recover_s=8,
    settings=REQUIRED,
)
def test_nothing_passes_on_a_disk_that_hangs_when_it_is_required(line, slow_disk, watch):
    """What was not written in time does not pass, long before the disk counts as hanging."""
    with Journaled(line, slow_disk, required=True) as plant:
        hold_back(plant, watch, slow_disk.hang, slow_disk.answer)


@fault(
    "Disk",
    "Journal required: disk gone",
    injected=GONE,
    does=HOLD_BACK,
    protection=f"{HELD}; a mount point without its disk is refused",
    detect_s=5,
    recover_s=8,
    settings=REQUIRED,
)
def test_nothing_passes_without_the_disk_when_it_is_required(line, disk, watch):
    """What is open can still be written after `umount -l`; it does not count, for nobody would find it."""

    def end():
        assert list(disk.folder.iterdir()) == []
        disk.come_back()

    with Journaled(line, disk, required=True) as plant:
        hold_back(plant, watch, disk.vanish, end)


# -- pictures -------------------------------------------------------------------------------------------------


class Pictured(Plant):
    """A plant that keeps a picture of every judgement, on the disk."""

    def __init__(self, line, disk):
        self.folder = disk.folder
        config = line.config('[evidence]\ndir = "disk"\nof = ["pass", "fail"]\nmax_per_s = 1000')
        super().__init__(config, truth, env=getattr(disk, "env", None))

    def picture(self, timeout_s=20.0):
        """The next picture that is promised, and there."""
        told = self.subscriber.until(lambda m: m.get("evidence") and not m["replayed"], timeout_s)
        path = self.folder / told["evidence"]
        eventually(path.exists)
        assert cv2.imread(str(path)) is not None


def lose_pictures(plant, watch, inject, end, log):
    """Verdicts go on without pictures and say so; pictures come back by themselves."""
    plant.picture()
    watch.injected()
    inject()
    plant.subscriber.until(lambda m: m.get("verdict") in ("pass", "fail") and m["evidence"] is None)
    plant.daemon.wait_for_log(log)
    watch.detected()
    for verdict in ("pass", "fail", "pass"):
        plant.judgement(verdict)
    watch.over()
    end()
    plant.daemon.wait_for_log("evidence_ok")
    while plant.subscriber.receive(0) is not None:
        pass
    plant.picture()
    watch.recovered()


@fault(
    "Disk", "Pictures: disk full", injected=FULL, does=KEPT, protection="the thread of its own", detect_s=5, recover_s=8
)
def test_the_pictures_disk_is_full(line, disk, watch):
    """A picture that is promised is there whole, or is counted as lost."""
    with Pictured(line, disk) as plant:
        lose_pictures(plant, watch, disk.fill, disk.make_room, "evidence_failing")


@pytest.mark.soak
@fault(
    "Disk", "Pictures: disk read-only", injected=BROKEN, does=KEPT, protection="its retries", detect_s=5, recover_s=8
)
def test_the_pictures_disk_is_read_only(line, disk, watch):
    """No file of it stays open, so that it can be repaired."""
    with Pictured(line, disk) as plant:
        lose_pictures(plant, watch, disk.break_down, disk.repair, "evidence_failing")


@pytest.mark.soak
@fault(
    "Disk",
    "Pictures: disk hangs",
    injected=HANGS,
    does=f"up to 32 pictures wait; then {KEPT}",
    protection="the bounded queue of the thread of its own",
    detect_s=12,
    recover_s=8,
)
def test_the_pictures_disk_hangs(line, slow_disk, watch):
    """Memory stays bounded, and nobody waits."""
    with Pictured(line, slow_disk) as plant:
        lose_pictures(plant, watch, slow_disk.hang, slow_disk.answer, "evidence_slow")


@pytest.mark.soak
@fault(
    "Disk",
    "Pictures: disk gone",
    injected=GONE,
    does=f"{KEPT}; nothing is written to the empty mount point",
    protection="a mount point without its disk is refused",
    detect_s=5,
    recover_s=8,
)
def test_the_pictures_disk_is_gone(line, disk, watch):
    """The disk around it, which may be the system's, does not fill up."""

    def end():
        assert list(disk.folder.iterdir()) == []
        disk.come_back()

    with Pictured(line, disk) as plant:
        lose_pictures(plant, watch, disk.vanish, end, "evidence_failing")
