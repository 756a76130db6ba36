"""Which frames show one part, and what they say together.

Sequences are written as they are seen, one character a frame: see `part_kit`.
"""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from part_kit import AT, verdict
from properties import examples

from inspectd.config import PartConfig
from inspectd.verdict import parts
from inspectd.verdict.parts import PartCounter, PartResult
from inspectd.verdict.schema import FrameInfo, Part, Verdict, timestamp

REASONS = {"x": "overload", "c": "corrupt"}


class Line:
    """A counter at a station that was seen empty, and the parts that it told."""

    def __init__(self, *, seen_empty: bool = True, **config: Any) -> None:
        self.config = PartConfig(**config)
        self.counter = PartCounter(self.config, frozenset({"empty", "void"}))
        self.parts: list[PartResult] = []
        self.index = 0
        for _ in range(self.config.leave_frames if seen_empty else 0):
            self.tell(verdict(".", 0))  # all before the first frame of a sequence

    def see(self, sequence: str, arrival: float = 0.0, **changes: Any) -> list[PartResult]:
        for kind in sequence:
            self.tell(verdict(kind, self.index, **changes), arrival)
            self.index += 1
        return self.parts

    def watch(self, sequence: str, *, fps: float = 30, begin: float = 1000.0, pts: bool = True) -> list[PartResult]:
        """Frames in their time; `_` is one that never came, `~` one that `max_fps` left out."""
        for number, kind in enumerate(sequence):
            if kind not in "_~":
                self.show(kind, self.index, begin + number / fps, pts=pts)
            self.index += kind != "_"
        return self.parts

    def show(self, kind: str, index: int, at: float, *, pts: bool = True) -> None:
        frame = FrameInfo(index=index, pts=at if pts else None, clock="arrival")
        self.took(self.counter.frame(verdict(kind, index, frame=frame), at, at))

    def tell(self, message: Verdict, arrival: float = 0.0) -> None:
        self.took(self.counter.frame(message, arrival, 0.0))

    def took(self, part: PartResult | None) -> PartResult | None:
        if part is not None:
            self.parts.append(part)
        return part


def summary(part: PartResult) -> str:
    return f"{part.verdict if part.reason is None else part.reason} {part.first_index}-{part.last_index}"


# -- time of which no frame tells --------------------------------------------------------------------------


def test_what_lies_behind_a_hole_is_another_part() -> None:
    """The process stood still, or a camera was quiet: what is seen then may be the end of the next part but one."""
    line = Line(seen_empty=False)
    line.watch("....pppppp" + 60 * "_" + "pppppp....pppp....")
    assert [summary(part) for part in line.parts] == ["camera_down 4-9", "camera_down 10-15", "pass 20-23"]


def test_a_defect_that_was_seen_before_a_hole_stands() -> None:
    """A fail needs no whole part."""
    line = Line(seen_empty=False)
    line.watch("....ppfp" + 60 * "_" + "pp....")
    assert [part.verdict for part in line.parts] == ["fail", "no_result"]


@pytest.mark.parametrize("fps", [2, 30, 250])
def test_a_hole_that_cannot_hide_an_empty_station_is_none(fps: float) -> None:
    """Of three frames that tell parts apart two were left out; with the third it is another part."""
    for left_out, told in ((2, ["pass"]), (3, ["no_result", "no_result"])):
        line = Line(seen_empty=False, leave_frames=3)
        line.watch("....ppp" + left_out * "_" + "ppp....", fps=fps)
        assert [part.verdict for part in line.parts] == told


def test_arrivals_alone_come_unevenly() -> None:
    """Where frames carry no time of their own, what is shorter than a quarter of a second is no hole."""
    for left_out, told in ((6, ["pass"]), (9, ["no_result", "no_result"])):
        line = Line(seen_empty=False)
        line.watch("....ppp" + left_out * "_" + "ppp....", pts=False)
        assert [part.verdict for part in line.parts] == told


def test_a_recording_that_begins_anew_is_no_continuation() -> None:
    """Its time goes back."""
    line = Line(seen_empty=False)
    line.watch("....ppp")
    line.watch("ppp....ppp....")
    assert [part.verdict for part in line.parts] == ["no_result", "no_result", "pass"]


def test_frames_that_are_told_early_are_no_hole() -> None:
    """Five refused ones overtake five that the engine still has."""
    line = Line(seen_empty=False)
    line.watch("....ppp")
    for index in (*range(12, 17), *range(7, 12), *range(17, 20)):
        line.show("c" if 12 <= index < 17 else "p", index, 1000 + index / 30)
    line.index = 20
    line.watch("....", begin=1000 + 20 / 30)
    assert [(part.reason, part.frames.total, part.frames.unseen) for part in line.parts] == [("corrupt", 16, 5)]


def test_a_camera_that_slows_down_is_believed_again() -> None:
    """From 30 to 5 frames a second, as some do at night: soon that is no hole any more."""
    line = Line(seen_empty=False)
    line.watch("....ppp....")
    line.watch("........ppp....ppp....", fps=5, begin=1000 + 11 / 30)
    assert [part.verdict for part in line.parts] == ["pass", "pass", "pass"]


MISSING = {
    "too few with an unseen one": ("ppppx_ppppp", ["pass 4-13"]),
    "as many as tell parts apart, with an unseen one": ("ppppp_x_ppppp", ["overload 4-14"]),
    "with an empty one": ("ppppp_._ppppp", ["uncertain 4-14"]),
    "with empty ones, one at a time": ("pppp_._._pppp", ["uncertain 4-13"]),
    "so many around one that nobody saw the station": ("ppppp_x__ppppp", ["camera_down 4-8", "camera_down 10-14"]),
    "what is seen there goes with neither into a pass": ("ppppp__x_fpppp", ["camera_down 4-8", "fail 10-14"]),
    "what max_fps leaves out does not lack": ("p~~~p~~~p~~~p~~~", ["pass 4-16"]),
    "nor with unseen ones": ("p~~p~~x~~p~~p~~p~~x~~p~~", ["pass 4-25"]),
    "what a run lacks to a part": ("f__", ["fail 4-4"]),
    "before it, too": ("__p", ["uncertain 4-4"]),
    "and far from it": ("f", []),
}


@pytest.mark.parametrize(("sequence", "expected"), MISSING.values(), ids=MISSING)
def test_missing_frames_count_like_unseen_ones(sequence: str, expected: list[str]) -> None:
    """Each moment without a frame is too short to hide a gap; together with what nobody saw it is not."""
    line = Line(seen_empty=False)
    line.watch("...." + sequence + "....__....")
    assert [summary(part) for part in line.parts] == expected


def test_many_moments_without_frames_are_not_taken_for_the_usual_ones() -> None:
    """A camera that loses every third frame does not slow down."""
    line = Line(seen_empty=False)
    line.watch("...." + 10 * "pp_" + "pp_x_pp....")
    assert [summary(part) for part in line.parts] == ["overload 4-28"]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("hole_at", [10, 13])
def test_a_refused_frame_that_overtakes_a_part_does_not_take_it_away(hole_at: int, ahead: int) -> None:
    """It is the first one told after a hole; the part, before or behind the hole, is still with the engine."""
    line = Line(seen_empty=False)
    order = [*range(10), *range(10, 13), *range(14, 20)]
    order.insert(13 - ahead, 13)
    for index in order:
        line.show((10 * "." + "fffx......")[index], index, 1000 + index / 30 + 0.3 * (index >= hole_at))
    assert [summary(part) for part in line.parts] == ["fail 10-12"]


def test_of_unseen_frames_at_a_hole_each_counts_once_and_on_its_side() -> None:
    """In between they go with what follows; those far ahead stay with the part that they are seen in."""
    line = Line(seen_empty=False, enter_frames=3)
    at = [1000 + index / 30 + (index >= 9) for index in range(20)]
    for index, kind in [*enumerate("......pp"), (10, "x"), (8, "c"), (9, "p"), *enumerate("p....", 11)]:
        line.show(kind, index, at[index])
    assert [(summary(part), part.frames.unseen) for part in line.parts] == [
        ("camera_down 6-7", 0),
        ("camera_down 9-11", 2),
    ]


# -- where a part begins and ends -----------------------------------------------------------------------

SEQUENCES = {
    "one part": ("..ppp...", ["pass 2-4"], 0),
    "two parts": ("..ppp...ppp...", ["pass 2-4", "pass 8-10"], 0),
    "not over yet": ("..ppp..", [], 0),
    "a single frame is flicker": ("..p...", [], 1),
    "flicker far before a part is none of it": ("..p...ppp...", ["pass 6-8"], 1),
    "flicker right before a part belongs to it": ("..p..pppp...", ["pass 2-8"], 0),
    "flicker right after a part belongs to it": ("..pppp..p...", ["pass 2-8"], 0),
    "a gap inside a part does not split it": ("..pp..pppp...", ["pass 2-9"], 0),
    "the shortest gap between two parts": ("..pp...pp...", ["pass 2-3", "pass 7-8"], 0),
    "frames that alternate are no run, but flicker": ("..p.p.p...", [], 1),
    "unseen frames do not end a part": ("..ppppxxpp...", ["pass 2-9"], 0),
    "unseen frames do not keep a part open": ("..ppp.x.x....", ["pass 2-4"], 0),
    "unclear frames do not keep a part open": ("..pppp.?.?.", ["pass 2-5"], 0),
    "something in a gap begins the gap anew": ("..pppp..u..p...", ["uncertain 2-11"], 0),
    "unseen frames alone are no part": ("..xxxxx...", [], 0),
    "unclear frames alone are no part": ("..?????...", [], 0),
    "unclear frames do not make a part of flicker": ("..?p?...", [], 1),
    "what was not judged may have been the rest of a part": ("..pxx...", ["overload 2-2"], 0),
}


@pytest.mark.parametrize(("sequence", "expected", "flickers"), SEQUENCES.values(), ids=SEQUENCES)
def test_where_a_part_begins_and_ends(sequence: str, expected: list[str], flickers: int) -> None:
    """Two frames make a part, three empty ones end it: the defaults."""
    line = Line()
    assert [summary(part) for part in line.see(sequence)] == expected
    assert line.counter.flickers == flickers


def test_a_part_is_told_at_the_last_empty_frame_that_it_takes_and_not_before() -> None:
    """`leave_frames` frames after it left, its verdict is there."""
    line = Line(leave_frames=4)
    line.see("ppp...")
    assert not line.parts
    line.see(".")
    assert len(line.parts) == 1


def test_every_label_of_an_empty_class_is_an_empty_station() -> None:
    """A bundle may have several of them."""
    line = Line()
    line.see("ppp.")
    line.see("..", label="void")
    assert [summary(part) for part in line.parts] == ["pass 0-2"]
    line.see("???...", label="void")
    assert line.counter.flickers == 0, "unclear, and not something that came into view"


def test_one_frame_is_a_part_where_the_configuration_says_so() -> None:
    """enter_frames = leave_frames = 1: a camera that takes one picture per part."""
    line = Line(enter_frames=1, leave_frames=1)
    line.see("p.f.p.")
    assert [part.verdict for part in line.parts] == ["pass", "fail", "pass"]


# -- what a part says ------------------------------------------------------------------------------------

VOTES = {
    "any defect: one fail is enough": ({}, "pppppfpppp", "fail"),
    "any defect: all pass": ({}, "pppp", None),
    "any defect: a fail beyond a gap counts": ({}, "f..pppppp", "fail"),
    "any defect: a fail after a gap counts": ({}, "pppppp..f", "fail"),
    "half of the frames is not enough": ({}, "ppuu", "uncertain"),
    "more than half is": ({}, "pppuu", None),
    "too few passed": ({"min_pass_frames": 4}, "ppp", "uncertain"),
    "just enough passed": ({"min_pass_frames": 3}, "ppp", None),
    "unseen frames count": ({}, "pppxxx", "overload"),
    "unclear frames count": ({}, "pp???", "uncertain"),
    "one frame that nobody vouches for is too many": ({}, "pppppppn", "not_ready"),
    "two frames of which nothing is known hide no gap": ({}, "ppppxxpppp?xppppp.?pppp", None),
    "three may": ({}, "ppppxxxpppp", "overload"),
    "also unclear ones": ({}, "pppppp???pppppp", "uncertain"),
    "also among empty ones": ({}, "pppppp.x.pppppp", "uncertain"),
    "what is no part without unseen frames": ({"enter_frames": 4}, "pppx", "overload"),
    "fewer, where fewer tell parts apart": ({"leave_frames": 2}, "ppppxxpppp", "overload"),
    "a defect beside them stands": ({}, "ppppxxxpppf", "fail"),
    "after it nothing is hidden in it": ({}, "pppppppxxxx", None),
    "before it neither": ({}, "xxxxppppppp", None),
    "unseen frames before a part count": ({}, "xxxppp", "overload"),
    "empty frames inside a part count": ({}, "pp..p..p", "uncertain"),
    "the most frequent reason is told": ({}, "pxcccp", "corrupt"),
    "empty frames inside a part are no reason": ({}, "p.x.p.x.p", "uncertain"),
    "unseen do not outweigh what was looked at": ({}, "puuxxpu", "uncertain"),
    "n of m: two in three": ({"vote": "n_of_m"}, "ppfpfppp", "fail"),
    "n of m: in a row": ({"vote": "n_of_m"}, "ppffppp", "fail"),
    "n of m: too far apart": ({"vote": "n_of_m"}, "pfppfpppp", None),
    "n of m: too few": ({"vote": "n_of_m", "n": 3, "m": 5}, "pffppp", None),
    "n of m: over the whole window": ({"vote": "n_of_m", "n": 3, "m": 5}, "pfpfpfppp", "fail"),
    "n of m: unseen frames do not stretch it": ({"vote": "n_of_m"}, "pppfxxxfpppppp", "fail"),
    "n of m: one of one": ({"vote": "n_of_m", "n": 1, "m": 1}, "pppf", "fail"),
    "n of m: the majority decides below n": ({"vote": "n_of_m"}, "pfuuupu", "uncertain"),
    "best view: pass": ({"vote": "best_view"}, "pppf", None),  # 0.9 against 0.8
    "best view: not without a majority": ({"vote": "best_view"}, "pffff", "uncertain"),
}


@pytest.mark.parametrize(("config", "sequence", "expected"), VOTES.values(), ids=VOTES)
def test_the_vote(config: dict[str, Any], sequence: str, expected: str | None) -> None:
    """`expected` is None for a pass, fail, or the reason of a no_result."""
    line = Line(**config)
    (part,) = line.see(sequence + "...")
    assert (part.reason or part.verdict) == (expected or "pass")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"p": 0.9, "f": 0.91}, "fail"),
        ({"p": 0.9, "f": 0.9}, "fail"),
        ({"p": 0.9, "f": 0.89}, "pass"),
        ({"p": 0.9, "u": 0.95}, "uncertain"),
        ({"p": 0.9, "u": 0.9}, "uncertain"),
        ({"f": 0.7, "u": 0.7}, "fail"),
    ],
)
def test_best_view_takes_the_frame_with_the_highest_score_and_of_equals_the_worse(
    scores: dict[str, float], expected: str
) -> None:
    """A tie never ends in favour of the part."""
    line = Line(vote="best_view")
    line.see("ppp", score=0.5)
    for kind, score in scores.items():
        line.see(kind, score=score)
    (part,) = line.see("...")
    assert (part.reason or part.verdict) == expected


def test_the_decisive_frame_is_the_strongest_of_those_that_decided() -> None:
    """The one whose picture somebody wants to see, the first of equals, with the seq of its own message."""
    line = Line()
    line.see("pp")
    line.see("f", score=0.7)
    line.see("f", score=0.95, label="dent")
    line.see("f", score=0.95)
    (part,) = line.see("p...")
    assert part.decisive is not None
    assert part.decisive.model_dump() == {
        "seq": 4,
        "index": 3,
        "pts": None,
        "captured_at": timestamp(AT + 3),
        "evidence": "3.png",
    }
    assert (part.label, part.score) == ("dent", 0.95)


def test_a_part_without_a_result_has_no_decisive_frame() -> None:
    """Nor a label: no frame decided."""
    line = Line()
    (part,) = line.see("puu...")
    assert (part.decisive, part.label, part.score) == (None, None, None)


def test_the_frames_of_a_part_are_told_by_what_became_of_them() -> None:
    """What lies inside and next to it counts; the empty frames that ended it do not."""
    line = Line()
    (part,) = line.see(".?xpp.fuxpppppp?c.x..")
    assert part.frames.model_dump() == {"total": 16, "passed": 8, "failed": 1, "uncertain": 3, "unseen": 3 + 1}
    assert (part.first_index, part.last_index) == (3, 14)
    assert (part.first_at, part.last_at) == (timestamp(AT + 3), timestamp(AT + 14))


def test_a_result_makes_a_message() -> None:
    """Every kind of it: what is missing is what the publisher knows."""
    line = Line()
    line.see("ppp...pfp...uuu...pxxxx...")
    assert [part.reason or part.verdict for part in line.parts] == ["pass", "fail", "uncertain", "overload"]
    for seq, part in enumerate(line.parts, 1):
        message = Part(boot_id="b00t", seq=seq, published_at=timestamp(AT), **asdict(part))
        assert (message.camera, message.roi, message.vote, message.model) == ("top", "part", "any_defect", "m0del")


@pytest.mark.parametrize("changes", [{"model": "other"}, {"config": "other"}, {"recipe": "other"}])
@pytest.mark.parametrize("rest", ["ppp...", "fff..."])
def test_no_part_mixes_two_models(changes: dict[str, Any], rest: str) -> None:
    """Nor two sets of thresholds: nobody vouches for the sum of both, whatever it says."""
    line = Line()
    line.see("ppp")
    (part,) = line.see(rest, **changes)
    assert (part.verdict, part.reason) == ("no_result", "not_ready")


# -- parts that nobody saw whole --------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", ".", "..", "xxxx", "..x"])
def test_a_part_that_was_there_when_the_daemon_started_does_not_pass(before: str) -> None:
    """Its first half may have shown the defect. The next one is judged as ever."""
    line = Line(seen_empty=False)
    line.see(before + "pppppppp...ppp...")
    assert [part.reason or part.verdict for part in line.parts] == ["not_ready", "pass"]


def test_a_part_that_was_there_when_the_daemon_started_fails_on_a_defect() -> None:
    """What was seen was seen."""
    line = Line(seen_empty=False)
    (part,) = line.see("ppf...")
    assert part.verdict == "fail"


@pytest.mark.parametrize(("sequence", "expected"), [("pppp", "camera_down"), ("ppfp", "fail"), ("p", "camera_down")])
def test_an_interrupted_part_is_told_at_once_and_does_not_pass(sequence: str, expected: str) -> None:
    """Also one that was just about to become a part; a defect that was seen stands."""
    line = Line()
    line.see(sequence)
    part = line.took(line.counter.interrupt("camera_down", 1.0))
    assert part is not None
    assert (part.reason or part.verdict) == expected


@pytest.mark.parametrize("sequence", ["", "....", "xx", "??", "p.", "ppp..."])
def test_an_interruption_between_parts_tells_nothing(sequence: str) -> None:
    """Nothing was in view, or no more than flicker."""
    line = Line()
    line.see(sequence)
    assert line.counter.interrupt("camera_down", 1.0) is None


def test_what_is_in_view_after_an_interruption_does_not_pass() -> None:
    """It may be the second half of what was in view before; it is told nevertheless, for it may be another part."""
    line = Line()
    line.see("pppx")
    line.took(line.counter.interrupt("camera_down", 1.0))
    line.see("ppp...ppp...", arrival=2.0)
    assert [part.reason or part.verdict for part in line.parts] == ["camera_down", "camera_down", "pass"]
    assert [part.frames.total for part in line.parts] == [4, 3, 3]


def test_frames_from_before_an_interruption_that_come_after_it_count_nowhere() -> None:
    """They were with the engine when the camera was lost: no part of their own."""
    line = Line()
    line.see("ppp", arrival=0.0)
    line.took(line.counter.interrupt("camera_down", 1.0))
    line.see("ppp...", arrival=0.9)
    line.see("...ppp...", arrival=2.0)
    assert [summary(part) for part in line.parts] == ["camera_down 0-2", "pass 12-14"]


def test_a_part_that_does_not_leave_is_told_once() -> None:
    """After max_s, also when no frame comes at all; nothing begins before the station was empty again."""
    line = Line(max_s=10)
    line.see("ppp", arrival=100.0)
    assert line.counter.due(110.0) is None
    part = line.took(line.counter.due(110.1))
    assert part is not None
    assert (part.verdict, part.reason, part.last_index) == ("no_result", "deadline", 2)
    assert line.counter.stuck
    assert line.counter.due(500.0) is None
    line.see("pppp..pp..pp", arrival=130.0)
    assert len(line.parts) == 1
    line.see("...", arrival=131.0)
    assert not line.counter.stuck
    line.see("ppp...", arrival=132.0)
    assert [part.reason or part.verdict for part in line.parts] == ["deadline", "pass"]


@pytest.mark.parametrize(("sequence", "expected"), [("ppfp", "fail"), ("ppxxxx", "overload"), ("ppuu", "deadline")])
def test_a_frame_that_comes_too_late_finds_the_part_overdue(sequence: str, expected: str) -> None:
    """Whoever is late in asking gets the same answer; a defect stands, and frames nobody saw are the better reason."""
    line = Line(max_s=10)
    line.see(sequence, arrival=0.0)
    (part,) = line.see(".", arrival=10.5)
    assert (part.reason or part.verdict) == expected


def test_flicker_is_not_taken_for_something_stuck() -> None:
    """A stretch that was as good as over when the line stopped does not swallow the next part."""
    line = Line(max_s=10)
    line.see("p..", arrival=0.0)
    assert line.counter.due(11.0) is None
    assert not line.counter.stuck
    line.see(".ppp...", arrival=12.0)
    assert [part.verdict for part in line.parts] == ["pass"]


@pytest.mark.parametrize("unseen", "nx?")
def test_flicker_that_lasts_too_long_takes_nothing_away(unseen: str) -> None:
    """Two frames a second: what is unseen behind it belongs to the next part, which nobody saw begin."""
    line = Line(seen_empty=False, max_s=5)
    line.watch("....p." + 12 * unseen + "pppp", fps=2)
    assert line.counter.flickers == 1
    line.watch("....pp....", fps=2, begin=1011.0)
    first, second = line.parts
    assert (first.verdict, first.first_index, first.frames.total) == ("no_result", 18, 16)
    assert second.verdict == "pass"


def test_flicker_that_lasts_too_long_may_have_been_the_beginning_of_a_part() -> None:
    """A defect was seen, and too few empty frames since: as long as nobody sees more, nothing passes on it."""
    line = Line(max_s=10)
    line.see("f..", arrival=0.0)
    assert line.counter.due(11.0) is None
    line.see("ppp...ppp...", arrival=12.0)
    assert [part.reason or part.verdict for part in line.parts] == ["deadline", "pass"]


@pytest.mark.parametrize("overdue_at", [3, 4])
def test_of_what_lies_behind_flicker_that_lasts_too_long_the_next_part_has_what_is_beside_it(overdue_at: int) -> None:
    """The frame between the empty ones is told late, before the flicker is ended or after it."""
    line = Line(max_s=10)
    for told, index in enumerate((0, 1, 3, 2)):
        if told == overdue_at:
            assert line.counter.due(10.1) is None
        line.tell(verdict("p.x."[index], index))
    assert line.counter.due(10.1) is None
    line.index = 4
    line.see("xppp...", arrival=10.1)
    assert [(part.reason, part.frames.total) for part in line.parts] == [("overload", 4)]


def test_what_may_be_a_part_is_told_when_it_lasts_too_long() -> None:
    """Also where the unseen frame that makes one of it was told late."""
    line = Line(max_s=10)
    line.see("p")
    line.index += 1
    line.see("..")
    line.tell(verdict("x", 1))
    line.took(line.counter.due(10.1))
    assert [summary(part) for part in line.parts] == ["overload 0-0"]


@pytest.mark.parametrize(
    ("before", "after", "expected"), [("ppp", "", "not_ready"), ("pfp", "", "fail"), ("...", "ppp", "pass")]
)
def test_a_part_that_was_in_view_while_nobody_vouched_does_not_pass(before: str, after: str, expected: str) -> None:
    """Even if no frame was told in that time. The next one is judged as ever."""
    line = Line()
    line.see(before, arrival=1.0)
    line.counter.vouched(2.0)
    line.see(after + "..." + "ppp...", arrival=2.0)
    assert [part.reason or part.verdict for part in line.parts] == [expected, "pass"]


# -- order, memory, and everything at once ------------------------------------------------------------------

FRAMES = st.lists(st.builds(str.__mul__, st.sampled_from("pppfu....?xcn"), st.integers(1, 5)), max_size=20).map("".join)
JUDGED = "pfu.?"


def usual(sequence: str) -> bool:
    """Whether missing frames are rare enough at every moment that the distance of frames is known."""
    long = ["_" in between for between in re.split(f"[{re.escape(JUDGED)}]", sequence)[1:-1]]
    windows = [long[max(0, end - 9) : end] for end in range(1, len(long) + 1)]
    return all(2 * sum(window) <= len(window) for window in windows)


LOSSY = (
    st.lists(st.builds(str.__mul__, st.sampled_from("pppfu....?xcn__"), st.integers(1, 5)), max_size=20)
    .map(lambda pieces: "??" + "".join(pieces))
    .filter(usual)
)
"""Also with frames that are missing, once two have shown how far apart they are."""
CONFIGS = st.builds(
    lambda vote, n, more, **rest: PartConfig(vote=vote, n=n, m=n + more, **rest),
    st.sampled_from(["any_defect", "n_of_m", "best_view"]),
    st.integers(1, 3),
    st.integers(0, 3),
    min_pass_frames=st.integers(1, 4),
    enter_frames=st.integers(1, 4),
    leave_frames=st.integers(1, 4),
)


def told(config: PartConfig, messages: Iterable[Verdict]) -> tuple[list[PartResult], int]:
    counter = PartCounter(config, frozenset({"empty"}))
    shown = [(message, (message.frame and message.frame.pts) or 0.0) for message in messages]
    results = [counter.frame(message, 0.0, at) for message, at in shown]
    return [result for result in results if result is not None], counter.flickers


def captured(sequence: str) -> list[Verdict]:
    """Of each frame that is not missing, in its time."""
    there = [(at, kind) for at, kind in enumerate(sequence) if kind != "_"]
    return [
        verdict(kind, index, frame=FrameInfo(index=index, pts=1000 + at / 30, clock="arrival"))
        for index, (at, kind) in enumerate(there)
    ]


def reference(config: PartConfig, sequence: str) -> tuple[list[tuple[Any, ...]], int]:
    """The same said without a state: cut the sequence where frames are missing, and where the station was empty."""
    judged = [i for i, kind in enumerate(sequence) if kind in JUDGED]
    holes = [a + 1 for a, b in pairwise(judged) if sequence[a:b].count("_") >= config.leave_frames]
    found, flickers = [], 0
    for begin, end in pairwise([0, *holes, len(sequence)]):
        within, more = pieces(config, sequence[begin:end], hole_before=begin > 0, hole_after=end < len(sequence))
        found += [(begin + first, begin + last, *rest) for first, last, *rest in within]
        flickers += more
    missing = [sequence[:i].count("_") for i in range(len(sequence))]
    return [(first - missing[first], last - missing[last], *rest) for first, last, *rest in found], flickers


def pieces(
    config: PartConfig, sequence: str, *, hole_before: bool, hole_after: bool
) -> tuple[list[tuple[Any, ...]], int]:
    """Of a sequence that no hole interrupts, judge each stretch."""
    something = [i for i, kind in enumerate(sequence) if kind in "pfu"]
    stretches: list[list[int]] = []
    for i in something:
        if stretches and sequence[stretches[-1][-1] : i].count(".") < config.leave_frames:
            stretches[-1].append(i)
        else:
            stretches.append([i])
    found, flickers = [], 0
    for first, last in [(stretch[0], stretch[-1]) for stretch in stretches]:
        before, after = sequence[:first], sequence[last + 1 :]
        over = after.split("p")[0].split("f")[0].split("u")[0].count(".") >= config.leave_frames
        if not over and not hole_after:
            continue
        around = before.rpartition(".")[2] + sequence[first : last + 1] + after.partition(".")[0]
        frames = around.replace("_", "")
        seen = "".join(kind for kind in frames if kind in "pfu")
        run = max(map(len, "".join(kind for kind in frames if kind in "pfu.").split(".")))
        unseen = [kind for kind in around if kind in "xcn"]
        in_doubt = not over and "." not in after
        if run + len(unseen) + around.count("_") < config.enter_frames and not in_doubt:
            flickers += 1
            continue
        last_part = max((i for i, kind in enumerate(before) if kind in "pfu"), default=-1)
        cut = None
        if not over:
            cut = "camera_down"
        elif before[last_part + 1 :].count(".") < config.leave_frames:
            cut = "camera_down" if hole_before else "not_ready"
        blind = re.split("[pfu]", sequence[first : last + 1])
        one = max(map(len, blind)) < config.leave_frames and run >= config.enter_frames
        found.append((first, last, judgement(config, frames, seen, unseen, cut, one), len(frames)))
    return found, flickers


def judgement(config: PartConfig, frames: str, seen: str, unseen: list[str], cut: str | None, one: bool) -> str:
    windows = [seen[i : i + config.m] for i in range(len(seen))]
    best = next(kind for kind in "pfu" if kind in seen)  # by their scores: 0.9, 0.8, 0.6
    fails = {"any_defect": "f" in seen, "best_view": best == "f"}
    fails["n_of_m"] = any(window.count("f") >= config.n for window in windows)
    if fails[config.vote]:
        return "fail"
    if "n" in unseen:
        return "not_ready"
    if cut is not None:
        return cut
    enough = one and seen.count("p") >= config.min_pass_frames and seen.count("p") * 2 > len(frames)
    if enough and (config.vote != "best_view" or best == "p"):
        return "pass"
    others = len(frames) - len(unseen) - seen.count("p")
    return REASONS[Counter(unseen).most_common(1)[0][0]] if len(unseen) > others else "uncertain"


@examples(200)
@given(CONFIGS, FRAMES | LOSSY)
def test_a_counter_says_what_a_reader_of_the_whole_sequence_says(config: PartConfig, sequence: str) -> None:
    """Frame by frame with bounded memory, or all at once by the words of the rule: the same parts."""
    results, flickers = told(config, captured(sequence))
    found = [(r.first_index, r.last_index, r.reason or r.verdict, r.frames.total) for r in results]
    assert (found, flickers) == reference(config, sequence)


@examples(100)
@given(CONFIGS, FRAMES)
def test_no_part_passes_that_should_not(config: PartConfig, sequence: str) -> None:
    """What a pass promises, held against the frames between the empty ones around it."""
    results, _ = told(config, (verdict(kind, i) for i, kind in enumerate(sequence)))
    for part in results:
        frames = part.frames
        assert frames.total == frames.passed + frames.failed + frames.uncertain + frames.unseen
        shown = Counter(sequence[part.first_index : part.last_index + 1])
        assert (shown["p"], shown["f"]) == (frames.passed, frames.failed)
        if part.verdict == "pass":
            assert config.vote != "any_defect" or not frames.failed
            assert frames.passed >= config.min_pass_frames
            assert frames.passed * 2 > frames.total
            assert part.decisive is not None
            assert sequence[part.decisive.index] == "p"
            assert sequence[: part.first_index].count(".") >= config.leave_frames
            shown = re.split("[pf]", sequence[part.first_index : part.last_index + 1].replace("u", "p"))
            assert max(map(len, shown)) < config.leave_frames
            assert frames.total - frames.unseen >= config.enter_frames


@examples(100)
@given(CONFIGS, FRAMES)
def test_every_judged_frame_is_in_one_part_at_most(config: PartConfig, sequence: str) -> None:
    """Parts do not overlap, and each begins and ends with a frame that shows something."""
    results, _ = told(config, (verdict(kind, i) for i, kind in enumerate(sequence)))
    edges = [edge for part in results for edge in (part.first_index, part.last_index)]
    assert edges == sorted(edges)
    assert len({part.first_index for part in results}) == len(results)
    assert all(sequence[edge] in "pfu" for edge in edges)
    assert sum(part.frames.total for part in results) <= len(sequence)


@examples(100)
@given(st.lists(st.tuples(st.integers(7, 10), st.integers(3, 6)), max_size=5), st.data())
def test_noise_below_the_hysteresis_neither_splits_nor_joins(runs: list[tuple[int, int]], data: st.DataObject) -> None:
    """Parts of seven frames and more, three empty ones between: edges that flicker change no count."""
    sequence = "..."
    for length, gap in runs:
        # At each edge one frame out of place, and one that is unclear beyond it.
        part = ["p"] * length
        if data.draw(st.booleans()):
            part[1] = data.draw(st.sampled_from(".?x"))
        if data.draw(st.booleans()):
            part[-2] = data.draw(st.sampled_from(".?x"))
        sequence += "".join(part) + data.draw(st.sampled_from(["", "?"])) + "." * gap
    results, flickers = told(PartConfig(), (verdict(kind, i) for i, kind in enumerate(sequence)))
    assert (len(results), flickers) == (len(runs), 0)


@examples(100)
@given(CONFIGS, FRAMES | LOSSY, st.randoms(use_true_random=False))
def test_frames_that_need_no_engine_may_come_early(config: PartConfig, sequence: str, random: Any) -> None:
    """Judged frames come in order; refused ones overtake them, by up to ten frames here: the parts are the same."""
    sequence += "." * config.leave_frames
    messages, there = captured(sequence), sequence.replace("_", "")
    early = sorted(range(len(messages)), key=lambda i: i - (random.uniform(0, 10) if there[i] in "xcn" else 0))
    assert told(config, (messages[i] for i in early)) == told(config, messages)


@pytest.mark.parametrize("late", ["ppppxxx.x", "xpppp.p.", "pp.xpp", "x.ppp"])
def test_an_unseen_frame_that_comes_late_counts_where_it_belongs(late: str) -> None:
    """A displaced frame's message may be overtaken by the next judged one, as long as its part is not over."""
    judged = [i for i, kind in enumerate(late) if kind != "x"]
    overtaken = [i for i, kind in enumerate(late) if kind == "x"]
    line, ordered = Line(), Line()
    for i in [*judged, *overtaken]:
        line.tell(verdict(late[i], i))
    line.index = len(late)
    assert line.see("...") == ordered.see(late + "...")


def test_what_was_not_seen_before_the_station_was_empty_is_nobodys() -> None:
    """Also where the station was seen empty only for a moment, or the message comes after the part's end."""
    line = Line(seen_empty=False)
    (part,) = line.see("xx??.ppp...")
    assert part.frames.total == 3
    line = Line()
    line.see("ppp..")
    line.index += 1
    line.see(".")
    line.tell(verdict("x", 5))
    line.see("ppp...")
    assert [part.frames.total for part in line.parts] == [3, 3]


@pytest.mark.parametrize("after", [1, 20])
def test_an_unseen_frame_that_comes_late_completes_what_may_hide_a_gap(after: int) -> None:
    """The third of three in a row, told when frames beyond them were judged."""
    line = Line()
    line.see("ppppp" + "xx")
    line.index += 1
    line.see(after * "p")
    line.tell(verdict("x", 7))
    line.see(10 * "p" + "...")
    assert [part.reason for part in line.parts] == ["overload"]


def test_unseen_frames_without_end_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those put aside are few; what gives way is counted, in the part that it lies in."""
    monkeypatch.setattr(parts, "EARLY", 8)
    line = Line()
    line.see("ppp" + "x" * 500)
    assert len(line.counter._early) == 8
    (part,) = line.see("...")
    assert (part.frames.total, part.frames.unseen, part.reason) == (503, 500, "overload")


@pytest.mark.parametrize("vote", ["any_defect", "n_of_m", "best_view"])
def test_memory_does_not_grow_with_the_length_of_a_part(vote: str) -> None:
    """Ten times as many frames: the same memory, within a few KiB."""
    line = Line(vote=vote, n=2, m=1000)
    feed: Callable[[str], object] = line.see
    feed("pufx?." * 50)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        feed("pufx?." * 500)
        assert tracemalloc.get_traced_memory()[0] - before < 16_384
    finally:
        tracemalloc.stop()
