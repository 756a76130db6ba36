"""Pictures of what was judged: whole, in the right colours, and never at the cost of a verdict."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given
from hypothesis import strategies as st
from journal_kit import eventually
from properties import examples
from structlog.testing import capture_logs

from inspectd.capture.picture import PictureReader
from inspectd.config import EvidenceConfig
from inspectd.errors import ConfigError
from inspectd.frame import Box, Frame
from inspectd.verdict.evidence import EvidenceStore, shelf, store
from inspectd.verdict.evidence.cutout import Developer, copied, views
from inspectd.verdict.evidence.shelf import Shelf, picture_path

BOOT = "0123456789abcdef"
AT = 1_769_860_800.25  # 2026-01-31T12:00:00.250Z
WAIT_S = 20.0
AREA = Box(8, 8, 48, 32)
QUADRANTS = np.array([[(200, 40, 30), (30, 160, 60)], [(40, 60, 210), (180, 180, 175)]], np.uint8)  # RGB


class Counts:
    """The metrics, and a way to wait for them."""

    def __init__(self) -> None:
        self.written = 0
        self.lost: Counter[str] = Counter()
        self.size = 0
        self.news = threading.Condition()

    def evidence_written(self) -> None:
        with self.news:
            self.written += 1
            self.news.notify_all()

    def evidence_lost(self, reason: str) -> None:
        with self.news:
            self.lost[reason] += 1
            self.news.notify_all()

    def evidence_size(self, size: int) -> None:
        with self.news:
            self.size = size
            self.news.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(condition, WAIT_S), (self.written, self.lost, self.size)


class Bench:
    """A store on a folder, pictures for it, and what became of them."""

    def __init__(self, folder: Path | None, **config: Any) -> None:
        self.folder = folder
        self.counts = Counts()
        evidence = EvidenceConfig(dir=folder).model_copy(update={"max_per_s": 1000, **config})
        self.store = EvidenceStore(evidence, BOOT, self.counts, retry_first_s=0.02)
        self.index = 0

    def keep(self, kind: Any = "fail", frame: Frame | None = None, area: Box = AREA) -> str | None:
        self.index += 1
        frame = noise() if frame is None else frame
        return self.store.keep("top", "part", kind, self.index, AT + self.index, frame, area)

    def files(self) -> list[str]:
        assert self.folder is not None
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def fill(self) -> None:
        """One picture after the other, until there is no room for the next."""
        for number in range(1, 100):
            assert self.keep(frame=noise(160, 150), area=Box(0, 0, 160, 150)) is not None
            self.counts.wait_for(lambda number=number: self.counts.written + self.counts.lost["disk"] == number)
            if self.counts.lost:
                return


@contextmanager
def running(folder: Path | None, **config: Any) -> Iterator[Bench]:
    bench = Bench(folder, **config)
    bench.store.start()
    try:
        yield bench
    finally:
        assert bench.store.stop(WAIT_S)


def noise(width: int = 64, height: int = 48) -> Frame:
    """Nothing that a PNG makes smaller."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Frame("rgb24", width, height, (pixels,), "bt601", True, 0.0, 0.0, "arrival")


def quadrants(pixel_format: str, matrix: str = "bt601", full_range: bool = True, size: int = 64) -> Frame:
    """Four colours that meet in the middle, made by libswscale as a decoder would give them."""
    rgb = QUADRANTS.repeat(size // 2, axis=0).repeat(size // 2, axis=1)
    picture = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format=pixel_format,
        src_color_range=ColorRange.JPEG,
        dst_colorspace={"bt601": Colorspace.SMPTE170M, "bt709": Colorspace.ITU709}[matrix],
        dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
    )
    frame = PictureReader("test").read(picture)
    frame.matrix, frame.full_range = matrix, full_range
    return frame


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Callable[..., None]]:
    """A disk of that size, mounted at the folder; call it with options to remount it."""

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", *options, "-t", "tmpfs", "none", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")

    folder.mkdir(exist_ok=True)
    mount("-o", f"size={megabytes}m")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def decodes(path: Path) -> bool:
    return cv2.imread(str(path)) is not None


# -- pictures ------------------------------------------------------------------------------------------

YUV = [*itertools.product(("yuv420p", "nv12", "yuv422p", "yuyv422"), ("bt601", "bt709"), (True, False))]


@pytest.mark.parametrize(
    ("pixel_format", "matrix", "full_range"), [*YUV, *((f, "bt601", True) for f in ("rgb24", "bgr24"))]
)
@pytest.mark.parametrize("area", [Box(8, 4, 48, 56), Box(9, 5, 45, 53), Box(0, 0, 64, 64)], ids=str)
def test_a_picture_shows_the_region_in_its_own_size_and_colours(
    pixel_format: str, matrix: str, full_range: bool, area: Box
) -> None:
    """Every layout, matrix and range, at even and odd places: the four colours, each where it is."""
    frame = quadrants(pixel_format, matrix, full_range)
    data = Developer("png").develop(*copied(frame, area, *views(frame, area)))
    picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert picture.shape == (area.height, area.width, 3)
    expected = QUADRANTS.repeat(32, axis=0).repeat(32, axis=1)
    off = np.abs(picture.astype(int) - expected[area.y : area.y + area.height, area.x : area.x + area.width]).max(2)
    y, x = np.mgrid[area.y : area.y + area.height, area.x : area.x + area.width]
    away = (np.abs(x - 31.5) > 2) & (np.abs(y - 31.5) > 2)  # shared chroma blurs the two lines where colours meet
    assert off[away].max() <= 4


@pytest.mark.parametrize("full_range", [True, False])
def test_a_gray_picture_keeps_its_gray(full_range: bool) -> None:
    """Limited range is stretched, as the network sees it."""
    plane = np.full((32, 32), 126, np.uint8)
    frame = Frame("gray", 32, 32, (plane,), "bt601", full_range, 0.0, 0.0, "arrival")
    data = Developer("png").develop(*copied(frame, Box(1, 1, 9, 9), *views(frame, Box(1, 1, 9, 9))))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (9, 9, 3)
    assert set(picture.ravel()) == {126 if full_range else 128}


@examples(60)
@given(st.data())
def test_a_copy_has_the_very_samples_of_the_frame(data: st.DataObject) -> None:
    """At any place, in frames of odd sizes and padded rows: what is developed is what the whole frame would give."""
    width, height = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    area = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    rng = np.random.default_rng(0)
    pixel_format = data.draw(st.sampled_from(["yuv420p", "nv12", "yuv422p", "yuyv422"]))
    half_width, half_height = -(-width // 2), -(-height // 2)
    shapes: dict[Any, list[tuple[int, ...]]] = {
        "yuv420p": [(height, width), (half_height, half_width), (half_height, half_width)],
        "nv12": [(height, width), (half_height, half_width, 2)],
        "yuv422p": [(height, width), (height, half_width), (height, half_width)],
        "yuyv422": [(height, half_width, 4)],
    }
    if pixel_format == "yuyv422" and width % 2:
        return
    planes = [rng.integers(0, 256, (h, w + 5, *rest), np.uint8)[:, :w] for h, w, *rest in shapes[pixel_format]]
    frame = Frame(pixel_format, width, height, tuple(planes), "bt709", False, 0.0, 0.0, "arrival")
    developer = Developer("png")
    assert developer.develop(*copied(frame, area, *views(frame, area))) == developer.develop(frame, area)


def test_the_frame_is_the_callers_again_at_once(tmp_path: Path) -> None:
    """A decoder may write its next picture into the same memory."""
    frame = quadrants("nv12")
    before = Developer("png").develop(frame, Box(8, 8, 48, 32))
    with running(tmp_path) as bench:
        frame.planes = tuple(plane.copy() for plane in frame.planes)
        path = bench.keep(frame=frame)
        for plane in frame.planes:
            plane[:] = 0
    assert path is not None
    assert (tmp_path / path).read_bytes() == before


@pytest.mark.parametrize(("area", "size"), [(Box(3, 3, 1, 1), 8), (Box(0, 0, 8, 8), 8), (Box(1, 1, 2101, 2051), 2104)])
def test_a_region_may_be_smaller_or_larger_than_any_network_input(area: Box, size: int) -> None:
    """From one pixel on."""
    frame = quadrants("yuv420p", size=size)
    data = Developer("jpeg").develop(*copied(frame, area, *views(frame, area)))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (area.height, area.width, 3)


# -- what is kept, and where -----------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "suffix"), [("png", "png"), ("jpeg", "jpg")])
def test_a_picture_is_where_its_path_says(tmp_path: Path, encoding: str, suffix: str) -> None:
    """Camera, region, day, time (UTC), boot, index, verdict."""
    with running(tmp_path, format=encoding) as bench:
        path = bench.keep("no_result")
        bench.counts.wait_for(lambda: bench.counts.written == 1)
    assert path == f"top/part/2026-01-31/120001.250-01234567-1-no_result.{suffix}"
    assert bench.files() == [path]
    assert cv2.imread(str(tmp_path / path)).shape == (32, 48, 3)
    assert bench.counts.size == (tmp_path / path).stat().st_size


@pytest.mark.parametrize("captured_at", [float("nan"), float("inf"), -1e300, 1e18])
def test_a_clock_that_is_none_costs_no_picture(captured_at: float) -> None:
    """It is filed under now."""
    path = picture_path("top", "part", captured_at, BOOT, 7, "fail", ".png")
    assert re.fullmatch(r"top/part/20\d\d-\d\d-\d\d/\d{6}\.\d{3}-01234567-7-fail\.png", path)


def test_only_wanted_verdicts_are_kept(tmp_path: Path) -> None:
    """What is not asked for is not counted as lost."""
    with running(tmp_path, of=("fail",)) as bench:
        paths = [bench.keep(kind) for kind in ("pass", "fail", "no_result")]
    assert [path is not None for path in paths] == [False, True, False]
    assert bench.files() == [paths[1]]
    assert not bench.counts.lost


def test_without_a_folder_nothing_is_kept() -> None:
    """And nothing is started, or lost."""
    with running(None) as bench:
        assert bench.keep() is None
    assert not bench.counts.lost


def test_a_region_outside_the_frame_is_no_picture(tmp_path: Path) -> None:
    """The camera changed its size: the verdict says so, the store only counts."""
    with running(tmp_path) as bench:
        assert bench.keep(area=Box(40, 8, 48, 32)) is None
        assert (
            bench.keep(frame=Frame("gray", 64, 48, (np.zeros((4, 4), np.uint8),), "bt601", True, 0, 0, "arrival"))
            is None
        )
    assert bench.counts.lost == {"outside": 2}


def test_a_picture_that_cannot_be_encoded_costs_only_itself(tmp_path: Path) -> None:
    """JPEG ends at 65,535 pixels."""
    wide = Frame("gray", 70_000, 8, (np.zeros((8, 70_000), np.uint8),), "bt601", True, 0.0, 0.0, "arrival")
    with running(tmp_path, format="jpeg") as bench:
        assert bench.keep(frame=wide, area=Box(0, 0, 70_000, 8)) is not None
        path = bench.keep()
        bench.counts.wait_for(lambda: bench.counts.written == 1)
    assert bench.files() == [path]
    assert bench.counts.lost == {"encoder": 1}


@pytest.mark.parametrize(("size", "long_s", "hung_s"), [((64, 48), 0.0, 1.0), ((4000, 3000), 8.0, 14.0)], ids=str)
def test_a_large_picture_is_given_its_time_and_a_hung_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], long_s: float, hung_s: float
) -> None:
    """Encoding 12 megapixels takes a second or more beside an engine, and that is no fault of the daemon."""
    late: list[float] = []

    def develop(*_: object) -> bytes:
        now = time.monotonic()
        late.extend(bench.store.worker.late_s(now + later) for later in (long_s, hung_s))
        return b"picture"

    monkeypatch.setattr(Developer, "develop", develop)
    width, height = size
    frame = Frame("gray", width, height, (np.zeros((height, width), np.uint8),), "bt601", True, 0.0, 0.0, "arrival")
    with running(tmp_path / "e") as bench:
        bench.keep(frame=frame, area=Box(0, 0, width, height))
        bench.counts.wait_for(lambda: bench.counts.written == 1)
    assert late[0] == 0.0
    assert late[1] > 0.0


def test_no_more_than_max_per_s_are_taken(tmp_path: Path) -> None:
    """The rest is refused and counted, at once."""
    with running(tmp_path, max_per_s=5) as bench:
        began = time.monotonic()
        taken = sum(bench.keep() is not None for _ in range(50))
        took_s = time.monotonic() - began
    assert 5 <= taken <= 5 + 5 * took_s
    assert bench.counts.lost == {"too_many": 50 - taken}


def test_a_flood_of_no_result_leaves_room_for_a_fail(tmp_path: Path) -> None:
    """A camera out of order must not cost the picture of a defect."""
    with running(tmp_path, max_per_s=10) as bench:
        flood = [bench.keep("no_result") for _ in range(100)]
        assert bench.keep("fail") is not None
    assert any(flood)
    assert not all(flood)


# -- the disk --------------------------------------------------------------------------------------------


def test_a_slow_disk_never_holds_up_who_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused, what was promised is written; one line when it begins, one when it ends."""
    bench = Bench(tmp_path)
    go_on, add = threading.Event(), Shelf.add

    def slow(self: Shelf, path: str, data: bytes) -> None:
        assert go_on.wait(WAIT_S)
        add(self, path, data)

    monkeypatch.setattr(Shelf, "add", slow)
    with capture_logs() as logs:
        bench.store.start()
        promised = [path for path in (bench.keep() for _ in range(500)) if path is not None]
        assert store.MAX_WAITING <= len(promised) <= store.MAX_WAITING + 1
        assert bench.counts.lost == {"queue": 500 - len(promised)}
        go_on.set()
        bench.counts.wait_for(lambda: bench.counts.written == len(promised))
        late = bench.keep()
        bench.counts.wait_for(lambda: bench.counts.written == len(promised) + 1)
        assert bench.store.stop(WAIT_S)
    assert bench.files() == sorted([*promised, str(late)])
    events = [entry["event"] for entry in logs if entry["event"] != "evidence_disk_small"]
    assert events == ["evidence_slow", "evidence_ok"]


def test_waiting_copies_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bytes, not only by their number; one alone may be larger than the bound."""
    monkeypatch.setattr(store, "MAX_WAITING_BYTES", 10_000)
    go_on = threading.Event()
    monkeypatch.setattr(Shelf, "add", lambda *_: go_on.wait(WAIT_S))
    with running(tmp_path) as bench:
        large = bench.keep(frame=noise(80, 80), area=Box(0, 0, 80, 80))  # 19,200 bytes
        refused = [bench.keep() for _ in range(20)]  # 4,608 bytes each, once the large one is off the queue
        go_on.set()
        bench.counts.wait_for(lambda: bench.counts.written == 1 + 20 - bench.counts.lost["queue"])
    assert bench.store._reserved_bytes == 0
    assert large is not None
    assert sum(path is not None for path in refused) <= 2
    assert bench.counts.lost["queue"] >= 18


def test_a_full_disk_is_told_once_and_works_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half picture, no line per picture, no promise that is not kept while it is known to be full."""
    folder = tmp_path / "evidence"
    probes, probe = threading.Semaphore(0), Shelf.probe

    def counted(self: Shelf, size: int) -> None:
        probes.release()
        probe(self, size)

    monkeypatch.setattr(Shelf, "probe", counted)
    with disk(folder, 1), capture_logs() as logs, running(folder) as bench:
        (folder / "somebody-elses").write_bytes(bytes(200_000))
        bench.fill()
        for _ in range(4):  # the one at the start, and three by which it has been tried again
            assert probes.acquire(timeout=WAIT_S)
        assert bench.store.failing, "a few bytes are free, but no picture fits"
        assert bench.keep() is None
        assert all(decodes(folder / name) for name in bench.files() if name.endswith(".png"))
        assert not [name for name in bench.files() if name.endswith(".tmp") and "inspectd" not in name]
        assert [entry["event"] for entry in logs].count("evidence_failing") == 1

        (folder / "somebody-elses").unlink()
        bench.counts.wait_for(lambda: not bench.store.failing)
        written = bench.counts.written
        path = bench.keep()
        bench.counts.wait_for(lambda: bench.counts.written > written)
        assert path is not None
        failing, ok = (e for e in logs if e["event"] in ("evidence_failing", "evidence_ok"))
    assert failing["why"] == "No space left on device"
    assert ok["lost"] > 0


def test_a_disk_that_turns_read_only_is_survived(tmp_path: Path) -> None:
    """As disks do when they fail."""
    folder = tmp_path / "evidence"
    with disk(folder, 8) as mount, running(folder) as bench:
        bench.keep()
        bench.counts.wait_for(lambda: bench.counts.written == 1)
        mount("-o", "remount,ro")
        bench.keep()
        bench.counts.wait_for(lambda: bench.store.failing)
        mount("-o", "remount,rw")
        bench.counts.wait_for(lambda: not bench.store.failing)
        assert bench.keep() is not None
        bench.counts.wait_for(lambda: bench.counts.written >= 2)


def test_a_folder_that_is_taken_away_is_not_made_again(tmp_path: Path) -> None:
    """Its disk may have been unmounted; once it is back, pictures are kept again, and counted afresh."""
    folder, away = tmp_path / "evidence", tmp_path / "away"
    with running(folder) as bench:
        bench.keep()
        bench.counts.wait_for(lambda: bench.counts.written == 1)
        folder.rename(away)
        bench.keep()
        bench.counts.wait_for(lambda: bench.store.failing)
        assert not folder.exists()
        folder.mkdir()
        bench.counts.wait_for(lambda: not bench.store.failing)
        path = bench.keep()
        bench.counts.wait_for(lambda: bench.counts.written == 2)
    assert bench.files() == [path]
    assert bench.counts.size == (folder / str(path)).stat().st_size


def test_nothing_is_written_under_a_disk_that_is_not_mounted_any_more(tmp_path: Path) -> None:
    """The folder that it was mounted at is still there, on the system's own disk."""
    folder = tmp_path / "evidence"
    with disk(folder, 8), capture_logs() as logs, running(folder) as bench:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        bench.keep()
        bench.counts.wait_for(lambda: bench.store.failing)
        assert bench.files() == []
    assert "not mounted" in next(entry["why"] for entry in logs if entry["event"] == "evidence_failing")


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("missing/evidence", "the folder above it does not exist"),
        ("file", "it is no folder"),
        ("file/evidence", "Not a directory"),
    ],
)
def test_a_folder_that_cannot_be_written_is_said_at_the_start(tmp_path: Path, folder: str, why: str) -> None:
    """One line that names the key. A folder that only needs to be made is made."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^evidence\.dir: .*{folder}: {why}$"):
        Bench(tmp_path / folder).store.start()
    with running(tmp_path / "new") as bench:
        assert bench.keep() is not None


@pytest.mark.parametrize("trouble", ["read-only", "read-only, no folder yet", "full"])
def test_a_disk_that_fails_at_the_start_keeps_no_line_from_inspection(tmp_path: Path, trouble: str) -> None:
    """As one that fails later: said once, tried again, and pictures are kept once it works."""
    with disk(tmp_path / "disk", 1) as mount:
        folder = tmp_path / "disk" / "evidence"
        if "no folder" not in trouble:
            folder.mkdir()
        if trouble == "full":
            filler = tmp_path / "disk" / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        else:
            mount("-o", "remount,ro")
        with capture_logs() as logs, running(folder) as bench:
            assert bench.store.failing
            assert bench.keep() is None
            if trouble == "full":
                filler.unlink()
            else:
                mount("-o", "remount,rw")
            eventually(lambda: not bench.store.failing)
            promised = bench.keep()
            bench.counts.wait_for(lambda: bench.counts.written == 1)
            assert bench.files() == [promised]
    told = [entry["event"] for entry in logs if entry["event"] != "evidence_disk_small"]
    assert told == ["evidence_failing", "evidence_ok"]


def test_stop_writes_what_waits_and_counts_what_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its time; afterwards nothing is taken, and stopping again changes nothing."""
    with running(tmp_path) as bench:
        promised = [bench.keep() for _ in range(20)]
    assert bench.files() == sorted(str(path) for path in promised)
    assert bench.keep() is None
    assert bench.store.stop(0)

    first, add = threading.Event(), Shelf.add
    hurried = Bench(tmp_path)

    def slow(self: Shelf, path: str, data: bytes) -> None:
        first.set()
        assert hurried.store.worker.stopping.wait(WAIT_S)
        add(self, path, data)

    monkeypatch.setattr(Shelf, "add", slow)
    hurried.store.start()
    for _ in range(10):
        hurried.keep()
    assert first.wait(WAIT_S)
    hurried.store.stop(0)
    assert hurried.store.worker.join(WAIT_S)
    assert (hurried.counts.written, hurried.counts.lost) == (1, {"shutdown": 9})


def test_a_defect_of_ours_ends_pictures_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is gone: `keep` goes on saying no, and it shows."""
    monkeypatch.setattr(Shelf, "add", lambda *_: 1 / 0)
    with running(tmp_path) as bench:
        bench.keep()
        assert bench.store.worker.join(WAIT_S)
        assert bench.store.failing
        assert bench.keep() is None
        assert bench.counts.lost["disk"] == 1


def test_a_process_killed_while_it_writes_leaves_no_half_picture(tmp_path: Path) -> None:
    """Every file with a picture's name is one; what is unfinished is removed when it is old."""
    script = f"""
import sys, pathlib
from inspectd.verdict.evidence.shelf import Shelf
shelf = Shelf(pathlib.Path({str(tmp_path)!r}), 10**9)
data = sys.stdin.buffer.read()
for index in range(10**6):
    shelf.add(f"top/part/2026-01-31/120000.000-01234567-{{index}}-fail.png", data)
    print(index, flush=True)
"""
    whole = Developer("png").develop(noise(400, 400), Box(0, 0, 400, 400))
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(whole)
    process.stdin.close()
    for _ in range(20):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    day = tmp_path / "top/part/2026-01-31"
    pictures = list(day.glob("[0-9]*.png"))
    assert len(pictures) >= 20
    assert {path.read_bytes() for path in pictures} == {whole}

    young, old = (day / f".120000.000-76543210-{index}-fail.png.tmp" for index in (1, 2))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    tended(Shelf(tmp_path, 10**9))
    assert young.exists()
    assert not old.exists()


# -- how much is kept ------------------------------------------------------------------------------------


def tended(kept: Shelf) -> Shelf:
    while kept.tend():
        pass
    return kept


def filed(kept: Shelf, where: str, second: int, size: int = 1000) -> str:
    camera, roi, day = where.split("/")
    path = f"{camera}/{roi}/2026-01-{day}/12{second // 60:02d}{second % 60:02d}.000-01234567-1-fail.png"
    kept.add(path, bytes(size))
    return path


def present(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_oldest_pictures_give_way_wherever_they_are(tmp_path: Path) -> None:
    """Over cameras, regions and days, by the time in their names; a day's empty folder goes, too."""
    kept = tended(Shelf(tmp_path, 4000))
    oldest = [filed(kept, "a/x/02", 5), filed(kept, "b/x/02", 7), filed(kept, "a/x/03", 1), filed(kept, "a/y/03", 2)]
    newest = [filed(kept, "b/x/03", 3), filed(kept, "a/x/04", 0), filed(kept, "b/y/04", 0), filed(kept, "a/x/04", 9)]
    assert present(tmp_path) == {*oldest, *newest}
    tended(kept)
    assert present(tmp_path) == set(newest)
    assert kept.size == 4000
    assert sorted(path.name for path in (tmp_path / "a/x").iterdir()) == ["2026-01-04"]


def test_what_an_earlier_run_left_counts(tmp_path: Path) -> None:
    """Found when it starts, and the oldest of it gives way."""
    before = Shelf(tmp_path, 10**6)
    names = [filed(before, f"cam{i % 3}/roi/{1 + i // 10:02d}", i) for i in range(60)]
    after = tended(Shelf(tmp_path, 25_000))
    assert after.size == 25_000
    assert present(tmp_path) == set(names[-25:])


def test_what_is_not_ours_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    """Other names, other places, and whatever a symbolic link leads to."""
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "evidence"
    folder.mkdir()
    link_target = filed(Shelf(elsewhere, 10), "a/x/01", 1) if elsewhere.mkdir() is None else ""
    kept = Shelf(folder, 1)
    ours = filed(kept, "a/x/01", 1)
    foreign = [
        folder / "a/x/2026-01-01/notes.txt",
        folder / "a/x/2026-01-01/120000.000-01234567-1-fail.png.bak",
        folder / "a/x/120000.000-01234567-1-fail.png",
        folder / "a/x/last-week/120000.000-01234567-1-fail.png",
        folder / "120000.000-01234567-1-fail.png",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(5000))
    (folder / "linked").symlink_to(elsewhere / "a")
    (folder / "a/x/2026-01-01/130000.000-01234567-1-fail.png").symlink_to(elsewhere / link_target)
    again = tended(Shelf(folder, 1))
    assert again.size == 0
    assert not (folder / ours).exists()
    assert all(path.exists() for path in foreign)
    assert (elsewhere / link_target).stat().st_size == 1000
    assert (folder / "a/x/2026-01-01/130000.000-01234567-1-fail.png").is_symlink()


def test_a_large_folder_is_looked_through_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written in between, and none is counted twice."""
    monkeypatch.setattr(shelf, "STEP", 10)
    monkeypatch.setattr(shelf, "_write_through", Path.write_bytes)  # 600 files: nobody cuts the power here
    before = Shelf(tmp_path, 10**9)
    for i in range(300):
        filed(before, f"cam{i % 2}/roi/01", i, size=10)
    kept = Shelf(tmp_path, 10**9)
    steps = 0
    while kept.tend():
        steps += 1
        filed(kept, f"cam{steps % 2}/roi/01", 1000 + steps, size=10)
    assert steps >= 30
    assert kept.size == 10 * (300 + steps) == 10 * len(present(tmp_path))


def test_a_day_with_more_pictures_than_are_remembered_gives_way_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked through again for the next oldest."""
    monkeypatch.setattr(shelf, "VICTIMS", 7)
    monkeypatch.setattr(shelf, "_write_through", Path.write_bytes)
    kept = Shelf(tmp_path, 500)
    names = [filed(kept, f"cam{i % 3}/roi/01", i, size=10) for i in range(150)]
    tended(kept)
    assert present(tmp_path) == set(names[-50:])


def test_pictures_that_somebody_else_deleted_are_not_waited_for(tmp_path: Path) -> None:
    """Their bytes are taken off the count when room is needed, and nothing newer is deleted for them."""
    kept = tended(Shelf(tmp_path, 3500))
    filed(kept, "a/x/01", 1), filed(kept, "a/x/01", 2)
    shutil.rmtree(tmp_path / "a")
    newer = {filed(kept, "b/x/02", second) for second in range(3)}
    tended(kept)
    assert present(tmp_path) == newer
    assert kept.size == 3000


def test_the_same_picture_again_takes_no_more_room(tmp_path: Path) -> None:
    """One frame may answer two triggers."""
    kept = tended(Shelf(tmp_path, 10_000))
    filed(kept, "a/x/01", 1), filed(kept, "a/x/01", 1, size=700)
    assert kept.size == 700


def test_a_store_keeps_to_max_mb(tmp_path: Path) -> None:
    """1 MiB, filled with pictures of 72 KB: the newest stay, their size is told."""
    with running(tmp_path, max_mb=1) as bench:
        for number in range(1, 25):
            assert bench.keep(frame=noise(160, 150), area=Box(0, 0, 160, 150)) is not None
            bench.counts.wait_for(lambda number=number: bench.counts.written == number)
        bench.counts.wait_for(lambda: bench.counts.size <= 2**20)
    sizes = {name: (tmp_path / name).stat().st_size for name in bench.files()}
    assert bench.counts.size == sum(sizes.values())
    assert [int(name.split("-")[-2]) for name in sizes] == list(range(25 - len(sizes), 25))
    assert 13 <= len(sizes) <= 14
