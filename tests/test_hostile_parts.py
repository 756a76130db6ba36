"""The part counter against one that keeps every frame and looks at all of them again each time."""

import random
from collections import Counter, deque
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from part_kit import verdict
from properties import examples

from inspectd.config import PartConfig
from inspectd.verdict.parts import PartCounter
from inspectd.verdict.schema import Verdict

MAX_S = 10.0
WORST = {"pass": 0, "no_result": 1, "fail": 2}
SIGHT = {**dict.fromkeys("pfu", "something"), ".": "empty", "?": "unclear"}
CONFIGS = st.builds(
    lambda vote, n, more, **rest: PartConfig(vote=vote, n=n, m=n + more, max_s=MAX_S, **rest),
    st.sampled_from(["any_defect", "n_of_m", "best_view"]),
    st.integers(1, 3),
    st.integers(0, 2),
    min_pass_frames=st.integers(1, 3),
    enter_frames=st.integers(1, 3),
    leave_frames=st.integers(1, 3),
)


@dataclass(frozen=True)
class Seen:
    """A judged frame."""

    index: int
    sight: str
    arrival: float
    verdict: Verdict
    missing: int  # frames that never came, between the judged one before it and this one


class Reader:
    """What has been told since the last cut, and what that means: counted anew at each question."""

    def __init__(self, config):
        self.config = config
        self.frames = []  # Seen, in order
        self.unseen = {}  # index -> reason
        self.empty_at = -1  # where the station last counted as empty
        self.carried = 0  # empty frames in a row from before the frames
        self.unwitnessed = "not_ready"
        self.valid_from = self.vouched_from = float("-inf")
        self.judged_at = None  # of the last judged frame: its index, and how many there would be up to it
        self.stuck = False
        self.flickers = 0

    def see(self, index, position, sight, arrival, message):
        overdue = self.due(arrival)
        missing = 0
        if self.judged_at is not None:
            missing = (position - index) - (self.judged_at[1] - self.judged_at[0])
        if missing >= self.config.leave_frames:
            overdue = self.hole() or overdue
        self.judged_at = index, position
        seen = Seen(index, sight, arrival, message, missing)
        self.frames.append(seen)
        if seen.sight == "something":
            self.carried = 0
        if seen.sight != "empty" or self.empties < self.config.leave_frames:
            return overdue
        part = self.cut(self.unwitnessed, in_doubt=False, up_to=seen.index)
        self.empty_at, self.unwitnessed, self.stuck = seen.index, None, False
        return part or overdue

    def due(self, now):
        shown = self.shown
        if not shown or now - shown[0].arrival <= MAX_S:
            return None
        part = self.judge("deadline", in_doubt=not self.empties)
        if part is None:  # flicker: all that is behind it stays
            self.frames = [seen for seen in self.frames if seen.index > shown[-1].index]
            self.unwitnessed, self.carried = "deadline", 0
            return None
        self.carried, self.frames, self.unseen, self.stuck = self.empties, [], {}, True
        return part

    def hole(self):
        """Behind the last judged frame: what was unseen since is not seen to belong to it."""
        last = self.judged_at[0]
        since = {index: reason for index, reason in self.unseen.items() if index > last}
        self.unseen = {index: reason for index, reason in self.unseen.items() if index < last}
        part = self.cut("camera_down", in_doubt=not self.empties)
        self.unseen, self.empty_at = since, last
        self.unwitnessed, self.stuck, self.carried = "camera_down", False, 0
        return part

    def interrupt(self, reason, now):
        part = self.cut(reason, in_doubt=not self.empties)
        self.unwitnessed, self.valid_from, self.stuck, self.carried = reason, now, False, 0
        return part

    @property
    def shown(self):
        """The frames with something in view. Of what is stuck nothing more is wanted."""
        return [] if self.stuck else [seen for seen in self.frames if seen.sight == "something"]

    @property
    def empties(self):
        """In a row, at the end; unclear frames interrupt nothing."""
        sights = [seen.sight for seen in self.frames if seen.sight != "unclear"]
        after = next((i for i, sight in enumerate(reversed(sights)) if sight == "something"), None)
        return self.carried + len(sights) if after is None else after

    def cut(self, why, *, in_doubt, up_to=float("inf")):
        part = self.judge(why, in_doubt=in_doubt) if self.shown else None
        self.carried = self.empties
        self.frames = []
        self.unseen = {index: reason for index, reason in self.unseen.items() if index > up_to}
        return part

    def judge(self, why, *, in_doubt):
        """(verdict or reasons, first, last, frames by what became of them, decisive frame), or None for flicker."""
        config, shown = self.config, self.shown
        first, last = shown[0].index, shown[-1].index
        empty = [seen.index for seen in self.frames if seen.sight == "empty"]
        begin = max([index for index in empty if index < first], default=self.empty_at)
        end = min([index for index in empty if index > last], default=float("inf"))
        unseen = Counter(reason for index, reason in self.unseen.items() if begin < index < end)
        inside = [seen for seen in self.frames if begin < seen.index < end]
        runs = "".join({"something": "s", "empty": "."}.get(seen.sight, "") for seen in inside).split(".")
        run = max(map(len, runs))
        missing = sum(seen.missing for seen in self.frames if begin < seen.index <= end)
        if run + unseen.total() + missing < config.enter_frames and not in_doubt:
            self.flickers += 1
            return None
        kinds = [seen.verdict.verdict for seen in shown]
        passed, failed = kinds.count("pass"), kinds.count("fail")
        gaps = sum(seen.sight == "empty" for seen in inside)
        total = len(inside) + unseen.total()
        uncertain = len(inside) - gaps - passed - failed
        best = max(shown, key=lambda seen: (seen.verdict.score, WORST[seen.verdict.verdict])).verdict.verdict
        windows = [kinds[at : at + config.m] for at in range(len(kinds))]
        fails = {
            "any_defect": failed > 0,
            "n_of_m": any(window.count("fail") >= config.n for window in windows),
            "best_view": best == "fail",
        }[config.vote]
        enough = passed >= config.min_pass_frames and 2 * passed > total
        blind = sorted([seen.index for seen in inside if seen.sight != "something"] + [*self.unseen])
        blind += [seen.index - 0.5 for seen in self.frames for _ in range(seen.missing)]
        between = [sum(a.index < index < b.index for index in blind) for a, b in pairwise(shown)]
        enough = enough and max(between, default=0) < config.leave_frames and run >= config.enter_frames
        if why is None and shown[0].arrival < self.vouched_from:
            why = "not_ready"
        most = {reason for reason, count in unseen.items() if count == max(unseen.values())}
        outweighed = unseen.total() > failed + uncertain + gaps
        if len({seen.verdict.model for seen in shown}) > 1:
            said = {"not_ready"}
        elif fails:
            said = {"fail"}
        elif unseen["not_ready"]:
            said = {"not_ready"}
        elif why is not None:
            said = most if why == "deadline" and outweighed else {why}
        elif enough and (config.vote != "best_view" or best == "pass"):
            said = {"pass"}
        else:
            said = most if outweighed else {"uncertain"}
        decided = [seen for seen in shown if seen.verdict.verdict in said]
        decisive = max(decided, key=lambda seen: seen.verdict.score).index if decided else None
        return said, first, last, (total, passed, failed, uncertain, unseen.total() + gaps), decisive


class Station(RuleBasedStateMachine):
    """Frames are captured in order; the judged ones are told in order too, the others at once, or late."""

    @initialize(config=CONFIGS, seen_empty=st.booleans())
    def begin(self, config, seen_empty):
        self.counter = PartCounter(config, frozenset({"empty"}))
        self.reader = Reader(config)
        self.now, self.index, self.model = 100.0, 0, "m0del"
        self.with_engine = deque()
        self.late = []
        self.lost = self.steady = 0
        self.capture("?", 2, 0.9)  # by now it is known how far apart they come
        for _ in range(config.leave_frames if seen_empty else 0):
            self.capture(".", 1, 0.9)
        self.judged(100)

    @rule(seed=st.integers(0, 2**32 - 1))
    def parts(self, seed):
        """Most of what a line shows: parts from their beginning to their end, and the empty station between them."""
        dice = random.Random(seed)
        for _ in range(dice.randint(1, 4)):
            kinds = dice.choices("pfu.?", (8, 1, 2, 1, 1), k=dice.randint(1, 7))
            for kind in "".join(kinds) + "." * dice.randint(0, 4):
                self.capture(kind, 1, dice.choice((0.3, 0.6, 0.6, 0.9)))
                if dice.random() < 0.1:
                    self.lose(dice.randint(1, 4))
                if dice.random() < 0.1:
                    self.refused(dice.choice("xxcn"), late=dice.random() < 0.3)
            self.judged(dice.choice((3, 100, 100)))

    @rule(kind=st.sampled_from("pfu.?"), count=st.integers(1, 3), score=st.sampled_from([0.3, 0.6, 0.6, 0.9]))
    def capture(self, kind, count, score):
        for _ in range(count):
            self.with_engine.append((kind, self.index, self.index + self.lost, self.now, score, self.model))
            self.index += 1
            self.steady += 1

    @rule(count=st.integers(1, 4))
    def lose(self, count):
        """Frames that never come; so seldom that it does not become the usual thing."""
        if self.steady >= 3:
            self.lost, self.steady = self.lost + count, 0

    @rule(count=st.sampled_from([1, 3, 100]))
    def judged(self, count):
        for _ in range(min(count, len(self.with_engine))):
            kind, index, position, arrival, score, model = self.with_engine.popleft()
            message = verdict(kind, index, score=score, model=model)
            expected = None
            if arrival >= self.reader.valid_from:
                expected = self.reader.see(index, position, SIGHT[kind], arrival, message)
            self.same(self.counter.frame(message, arrival, float(position)), expected)

    @rule(kind=st.sampled_from("xxcn"), late=st.booleans())
    def refused(self, kind, late):
        self.late.append((kind, self.index, self.index + self.lost, self.now))
        self.index += 1
        if not late:
            self.tell_refused()

    @precondition(lambda self: self.late)
    @rule()
    def tell_refused(self):
        """The newest first: those that are late get later still."""
        kind, index, position, arrival = self.late.pop()
        message = verdict(kind, index)
        expected = None
        if arrival >= self.reader.valid_from:
            expected = self.reader.due(arrival)
            self.reader.unseen[index] = message.reason
        self.same(self.counter.frame(message, arrival, float(position)), expected)

    @rule(what=st.sampled_from(["a while", "long", "long, and asked", "camera_down", "not_ready", "model", "vouched"]))
    def something_else(self, what):
        match what:
            case "a while":
                self.now += 1.0
            case "long" | "long, and asked":
                self.now += MAX_S + 1
                if what != "long":
                    self.same(self.counter.due(self.now), self.reader.due(self.now))
            case "model":
                self.model = "other" if self.model == "m0del" else "m0del"
            case "vouched":
                self.now += 0.01
                self.counter.vouched(self.now)
                self.reader.vouched_from = self.now
            case reason:
                self.now += 0.01
                self.steady = 0
                self.same(self.counter.interrupt(reason, self.now), self.reader.interrupt(reason, self.now))

    def same(self, part, expected):
        if part is None or expected is None:
            assert (part, expected) == (None, None)
            return
        said, first, last, frames, decisive = expected
        assert (part.reason or part.verdict) in said
        assert (part.verdict == "no_result") == (part.reason is not None)
        assert (part.first_index, part.last_index) == (first, last)
        counted = part.frames
        assert (counted.total, counted.passed, counted.failed, counted.uncertain, counted.unseen) == frames
        assert (part.decisive and part.decisive.index) == decisive

    @invariant()
    def same_state(self):
        assert (self.counter.stuck, self.counter.flickers) == (self.reader.stuck, self.reader.flickers)


Station.TestCase.settings = examples(100, stateful_step_count=30)
TestTheCounterSaysWhatAReaderOfEverythingSays = Station.TestCase
