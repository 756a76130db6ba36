"""What the frames of one part say together: their counts, and the vote that makes one verdict of them."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from inspectd.config import PartConfig
from inspectd.verdict.schema import DecisiveFrame, FrameInfo, NoResultReason, PartFrames, Verdict, VerdictKind

_WORST = {"fail": 2, "no_result": 1, "pass": 0}  # of equally good views the worse one counts


@dataclass(frozen=True, slots=True)
class PartResult:
    """One part, judged: everything of its message that is known before it is numbered and sent. See `Part`."""

    camera: str
    roi: str
    verdict: VerdictKind
    reason: NoResultReason | None
    label: str | None
    score: float | None
    vote: Literal["any_defect", "n_of_m", "best_view"]
    frames: PartFrames
    first_index: int
    last_index: int
    first_at: str | None
    last_at: str | None
    decisive: DecisiveFrame | None
    model: str
    config: str
    recipe: str | None


@dataclass(slots=True)
class Aside:
    """Frames that do not vote, because nothing is known of what they show. They count against a pass."""

    uncertain: int = 0  # between an empty station and something
    empty: int = 0  # inside a part: it cannot have been away for so short a time
    unseen: Counter[NoResultReason] = field(default_factory=Counter)  # never judged
    missing: int = 0  # never captured: they are no frames of any part, but what they lack to one

    def add(self, other: Aside) -> None:
        self.uncertain += other.uncertain
        self.empty += other.empty
        self.unseen.update(other.unseen)
        self.missing += other.missing


RUNS = 64
"""Frames that show something, back to which an unseen one that is told late still finds its place."""


@dataclass(slots=True)
class _Run:
    """Frames in a row of which none shows anything, missing ones too, and where it begins."""

    after: int  # index of the frame before it
    frames: int = 0


class Tally:
    """The frames of one part so far, in memory that does not grow with their number."""

    def __init__(self, config: PartConfig, since: float) -> None:
        self.since = since  # monotonic seconds, arrival of the first frame
        self.aside = Aside()
        self.gap = Aside()  # up to the last empty frame since something was seen: inside it if more is seen
        self._config = config
        self._judged: Counter[str] = Counter()  # frames with something in view: pass, fail, no_result (uncertain)
        self._run = self._longest = 0  # judged frames that no empty one interrupts
        self._last_fails: deque[int] = deque(maxlen=config.n)  # which of the judged frames they were
        self._n_of_m = False
        self._best: dict[str, Verdict] = {}  # by verdict: the frame with the highest score, the earliest of equals
        self._first: tuple[FrameInfo, Verdict]
        self._last: tuple[FrameInfo, Verdict]
        self._mixed = False
        self._runs: deque[_Run] = deque(maxlen=RUNS)  # one behind each of the last judged frames
        self._may_be_two = False

    def judged(self, verdict: Verdict, frame: FrameInfo) -> None:
        """A frame with something in view."""
        self.aside.add(self.gap)
        self.gap = Aside()
        if not self._judged:
            self._first = (frame, verdict)
        self._last = (frame, verdict)
        if self._runs:
            self._doubt(self._runs[-1])
        self._runs.append(_Run(frame.index))
        first = self._first[1]
        self._mixed |= (verdict.model, verdict.config, verdict.recipe) != (first.model, first.config, first.recipe)
        self._judged[verdict.verdict] += 1
        self._run += 1
        self._longest = max(self._longest, self._run)
        best = self._best.get(verdict.verdict)
        if best is None or _score(verdict) > _score(best):
            self._best[verdict.verdict] = verdict
        if verdict.verdict == "fail":
            self._last_fails.append(self._judged.total())
            within = self._last_fails[-1] - self._last_fails[0] < self._config.m
            self._n_of_m |= len(self._last_fails) == self._config.n and within

    def nothing_shown(self, index: int, frames: int = 1) -> None:
        """A frame that shows nothing: empty, unclear, or never judged; in the order of the index, or late.

        Or so many that are missing before it.
        """
        for run in reversed(self._runs):
            if run.after < index:
                run.frames += frames
                if run is not self._runs[-1]:
                    self._doubt(run)
                return

    def _doubt(self, run: _Run) -> None:
        """Between two frames that show something: so many as tell two parts apart, had they been seen."""
        self._may_be_two |= run.frames >= self._config.leave_frames

    def interrupted(self) -> None:
        """An empty frame: what follows is a run of its own."""
        self._run = 0

    @property
    def is_part(self) -> bool:
        """Whether this was more than flicker: seen in a run of `enter_frames`, had every frame been judged.

        A frame that nobody judged, or that never came, may have been the one that lacks: in doubt there was a part.
        """
        return self._longest + self.aside.unseen.total() + self.aside.missing >= self._config.enter_frames

    def result(self, cut_short: NoResultReason | None) -> PartResult:
        """The verdict on all of it; `cut_short` is why it was not seen from its beginning to its end, or None.

        A fail that was voted stands, whatever was not seen. A pass needs the whole part.
        """
        verdict: VerdictKind = "no_result"
        reason: NoResultReason | None = None
        if self._mixed:
            reason = "not_ready"  # two models or two sets of thresholds: nobody vouches for their sum
        elif self._fails:
            verdict = "fail"
        elif self.aside.unseen["not_ready"]:
            reason = "not_ready"  # what judged the rest is not vouched for any more, or was not yet
        elif cut_short is not None:
            reason = self._unseen_reason(cut_short) if cut_short == "deadline" else cut_short
        elif self._passes:
            verdict = "pass"
        else:
            reason = self._unseen_reason("uncertain")
        (first_frame, first), (last_frame, last) = self._first, self._last
        decisive = None if verdict == "no_result" else self._best[verdict]
        return PartResult(
            camera=first.camera,
            roi=first.roi,
            verdict=verdict,
            reason=reason,
            label=None if decisive is None else decisive.label,
            score=None if decisive is None else decisive.score,
            vote=self._config.vote,
            frames=self._frames,
            first_index=first_frame.index,
            last_index=last_frame.index,
            first_at=first.captured_at,
            last_at=last.captured_at,
            decisive=None if decisive is None else _decisive(decisive),
            model=last.model,
            config=last.config,
            recipe=last.recipe,
        )

    @property
    def _frames(self) -> PartFrames:
        uncertain = self._judged["no_result"] + self.aside.uncertain
        unseen = self.aside.empty + self.aside.unseen.total()
        return PartFrames(
            total=self._judged["pass"] + self._judged["fail"] + uncertain + unseen,
            passed=self._judged["pass"],
            failed=self._judged["fail"],
            uncertain=uncertain,
            unseen=unseen,
        )

    @property
    def _fails(self) -> bool:
        match self._config.vote:
            case "any_defect":
                return self._judged["fail"] > 0
            case "n_of_m":
                return self._n_of_m
            case "best_view":
                return self._best_view == "fail"

    @property
    def _passes(self) -> bool:
        """Where no fail is voted: enough frames passed, more than half of all there are, and it is one part."""
        if self._may_be_two or self._longest < self._config.enter_frames:
            return False
        frames = self._frames
        enough = frames.passed >= self._config.min_pass_frames and 2 * frames.passed > frames.total
        return enough and (self._config.vote != "best_view" or self._best_view == "pass")

    @property
    def _best_view(self) -> VerdictKind:
        return max(self._best.values(), key=lambda view: (_score(view), _WORST[view.verdict])).verdict

    def _unseen_reason(self, otherwise: NoResultReason) -> NoResultReason:
        """Why most frames were not seen, where those outweigh the ones that were seen and did not pass."""
        unseen, frames = self.aside.unseen, self._frames
        if unseen.total() > frames.failed + frames.uncertain + self.aside.empty:
            return unseen.most_common(1)[0][0]
        return otherwise


def _score(verdict: Verdict) -> float:
    return verdict.score or 0.0


def _decisive(verdict: Verdict) -> DecisiveFrame:
    assert verdict.frame is not None
    return DecisiveFrame(
        seq=verdict.seq,
        index=verdict.frame.index,
        pts=verdict.frame.pts,
        captured_at=verdict.captured_at,
        evidence=verdict.evidence,
    )
