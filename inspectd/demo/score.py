"""How the verdicts compare with what the conveyor showed: counts, and the parts one by one."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from inspectd.capture.conveyor import Line
from inspectd.model.flange import DEFECTS
from inspectd.verdict.schema import Verdict

ANSWERS = ("pass", "fail", "no part", "no result")
_KEPT = 20_000  # latencies: eleven minutes at 30 fps
_RATE_OVER_S = 3.0


def answer(verdict: Verdict) -> str:
    """One of `ANSWERS`; "no part" is the `no_result` without a reason, of an empty station."""
    if verdict.verdict == "no_result":
        return "no part" if verdict.reason is None else "no result"
    return verdict.verdict


def expected(truth: str) -> str:
    """The answer that is right for what the station shows."""
    return "no part" if truth == "empty" else "fail" if truth in DEFECTS else "pass"


@dataclass(slots=True)
class Passage:
    """One part on its way through the station, or one gap: all frames in a row with the same truth."""

    truth: str
    answers: Counter[str] = field(default_factory=Counter)
    last: Verdict | None = None

    @property
    def right(self) -> int:
        return self.answers[expected(self.truth)]


class Score:
    """Takes verdicts in the order of the stream. Frames while a part is partly in view have no truth: not counted."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._truth: str | None = None
        self._latency_ms: deque[float] = deque(maxlen=_KEPT)
        self._received: deque[float] = deque()
        self.started: float | None = None
        self.seen = 0
        self.lost = 0  # verdicts that were published and never came
        self.answers: Counter[tuple[str, str]] = Counter()  # (truth, answer)
        self.passages: deque[Passage] = deque(maxlen=8)  # parts, not gaps; the newest last

    def add(self, verdict: Verdict, now: float | None = None) -> None:
        """Count one verdict; `now` is monotonic seconds."""
        now = time.monotonic() if now is None else now
        if verdict.replayed:
            return
        self.started = self.started or now
        self.seen += 1
        self._received.append(now)
        self._latency_ms.append(verdict.latency_ms.total)
        self._compare(verdict)

    def _compare(self, verdict: Verdict) -> None:
        if verdict.frame is None or verdict.frame.pts is None:
            return
        # The stream's own time, not the daemon's frame count: it starts anew if the camera does.
        truth = self._line.truth(round(verdict.frame.pts * self._line.fps))
        if truth is not None:
            self.answers[truth, answer(verdict)] += 1
        if truth not in (None, "empty"):
            if truth != self._truth:
                self.passages.append(Passage(str(truth)))
            passage = self.passages[-1]
            passage.answers[answer(verdict)] += 1
            passage.last = verdict
        self._truth = truth

    @property
    def compared(self) -> int:
        return sum(self.answers.values())

    @property
    def right(self) -> int:
        return sum(count for (truth, given), count in self.answers.items() if given == expected(truth))

    @property
    def agreement(self) -> float:
        """Share of right answers, 0..1; 0 while there are none."""
        return self.right / self.compared if self.compared else 0.0

    @property
    def wrong_pass(self) -> int:
        """Defects, or an empty station, that were passed: the worst that can happen."""
        return sum(count for (truth, given), count in self.answers.items() if given == "pass" and truth != "good")

    @property
    def missed(self) -> int:
        """Frames of defective parts that were not failed; includes those without a result."""
        return sum(count for (truth, given), count in self.answers.items() if truth in DEFECTS and given != "fail")

    def fps(self, now: float | None = None) -> float:
        """Verdicts per second over the last few seconds."""
        now = time.monotonic() if now is None else now
        while self._received and self._received[0] < now - _RATE_OVER_S:
            self._received.popleft()
        over = min(_RATE_OVER_S, now - self.started) if self.started is not None else 0.0
        return len(self._received) / over if over > 0.5 else 0.0

    def latency_ms(self, *quantiles: float) -> list[float]:
        """Quantiles (0..1) from a frame's arrival to its verdict's publication, of the newest 20,000."""
        if not self._latency_ms:
            return [0.0] * len(quantiles)
        return [float(value) for value in np.quantile(np.array(self._latency_ms), quantiles)]
