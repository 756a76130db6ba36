"""Each message of the stream once, per topic in order, and what is missing found, asked for, or told as lost.

A state machine without sockets and clocks: messages, heartbeats, replies and the time go in; events go out through
`emit`, questions for the control socket through `asks`.

A topic is read stretch by stretch: one stretch per boot of the daemon, the last one is the running boot's. In a stretch
`next` is the number that is due. What comes too early is held while the hole before it is asked for. What full means:
at most `capacity` messages are held, and while the user has no `room` none is taken at all; whatever is turned
away counts as not received and is asked for later, like any other hole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from inspectd.client.events import Event, Lost, Received, Restarted
from inspectd.verdict.control_schema import MAX_REPLAY
from inspectd.verdict.schema import Heartbeat

REPLAY_S = 0.8
"""A hole that nobody answers for so long is lost: later messages of its topic have waited long enough."""
CATCH_UP_S = 60.0
"""While the daemon does answer, page by page, holes are filled for so long; the rest is lost."""
RETRY_S = 0.1
"""When to ask again what the daemon was too busy to answer."""
MAX_ASKS = 8
"""Questions under way at the same time."""
_BOOTS = 8  # ended ones that are remembered, and stretches of a topic

_AGAIN = ("busy", "journal_failing")


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A replay to be asked for. Compared by identity: one that is no longer waited for is no longer known."""

    topic: str
    boot_id: str
    from_seq: int
    limit: int
    newest: int  # what was known to be published when it was asked for: absent from the last page it is lost
    tail: bool  # the boot was over by then, so that its last page is the end of it


@dataclass(slots=True)
class _Stretch:
    boot_id: str
    next: int  # the number that is due
    newest: int = 0  # known to be published
    begun: bool = True  # False: nothing came yet, and an earlier last value is welcome
    settled: int = 0  # what is not here up to this number never will be
    over: bool = False  # the boot has ended, and what it published last is still to be asked for
    held: dict[int, Received] = field(default_factory=dict)  # by seq

    @property
    def open(self) -> bool:
        """Whether something is missing, or may be."""
        return self.over or (self.next <= self.newest and self.next not in self.held and self.next > self.settled)

    @property
    def complete(self) -> bool:
        return not self.over and self.next > self.newest

    def hole_end(self) -> int:
        """The last number of the hole that `next` is in."""
        return min(self.held) - 1 if self.held else self.newest

    def give_up(self) -> None:
        """Everything that is not here is lost."""
        self.settled = max(self.settled, self.newest)
        self.over = False


@dataclass(slots=True)
class _Topic:
    name: str
    stretches: deque[_Stretch]  # never empty; the oldest first
    ask: Ask | None = None  # under way
    wanted_at: float | None = None  # since when it catches up
    retry_at: float = 0.0


class Continuity:
    """See the module. Used by one thread."""

    def __init__(
        self,
        topics: Sequence[str],
        *,
        replay: bool,
        capacity: int,
        emit: Callable[[Event], None],
        room: Callable[[], int],
    ) -> None:
        self.boot_id: str | None = None
        self.duplicates = 0
        self._prefixes = tuple(topics)
        self._replay = replay
        self._capacity = capacity
        self._emit = emit
        self._room = room
        self._journal = True  # whether the running boot has one, as far as is known
        self._heard = False  # a heartbeat of the running boot: from then on every topic is known from its beginning
        self._ended: deque[str] = deque(maxlen=_BOOTS)
        self._before: str | None = None  # the boot before this one, if all its topics were known
        self._topics: dict[str, _Topic] = {}
        self._busy: dict[str, _Topic] = {}  # those with something held, missing or asked for
        self._answered_at = 0.0

    # -- what comes ---------------------------------------------------------------------------------

    def message(self, event: Received) -> None:
        """A message of the stream, but no heartbeat."""
        message = event.message
        if not self._is_running(message.boot_id):
            self.duplicates += 1  # of a boot that is over; if it was missing, it is asked for
            return
        topic = self._topics.get(event.topic) or self._new_topic(event.topic, message.seq)
        stretch = topic.stretches[-1]
        if not stretch.begun:
            stretch.begun = True
            stretch.next = min(stretch.next, message.seq)
        if message.seq < stretch.next or message.seq in stretch.held:
            self.duplicates += 1
            return
        stretch.newest = max(stretch.newest, message.seq)
        if self._room() > 0 and self._held() < self._capacity:
            stretch.held[message.seq] = event
        self._settle(topic)

    def heartbeat(self, beat: Heartbeat) -> bool:
        """A heartbeat; False when it is of a boot that is over, and so says nothing about now."""
        if not self._is_running(beat.boot_id):
            return False
        self._journal = beat.journal != "off"
        for name, newest in beat.topics.items():
            if name.startswith(self._prefixes):
                topic = self._topics.get(name) or self._new_topic(name, newest + 1, begun=False)
                stretch = topic.stretches[-1]
                stretch.newest = max(stretch.newest, newest)
                self._settle(topic)
        self._heard = True
        return True

    # -- replay -------------------------------------------------------------------------------------

    def asks(self, now: float) -> list[Ask]:
        """The questions that are due now. Each is followed by `answered` or `refused`."""
        found: list[Ask] = []
        under_way = [topic.ask for topic in self._busy.values() if topic.ask is not None]
        for topic in list(self._busy.values()):
            stretch = topic.stretches[0]
            if topic.ask is not None:
                continue
            if not stretch.open:
                topic.wanted_at = None  # it is all here, and waits for the user
                continue
            if not (self._replay and self._journal):
                self._give_up(topic)
                continue
            room = self._room() - sum(ask.limit for ask in under_way)  # their answers need places too
            if room <= 0:
                topic.wanted_at = None  # it is the user whom it waits for
                continue
            if topic.wanted_at is None:
                topic.wanted_at = now
            if len(under_way) < MAX_ASKS and now >= topic.retry_at:
                hole = MAX_REPLAY if stretch.over and not stretch.held else stretch.hole_end() - stretch.next + 1
                limit = max(1, min(MAX_REPLAY, hole, room))
                topic.ask = Ask(topic.name, stretch.boot_id, stretch.next, limit, stretch.newest, stretch.over)
                found.append(topic.ask)
                under_way.append(topic.ask)
        return found

    def answered(
        self, ask: Ask, messages: Collection[Received], next_seq: int | None, next_boot_id: str | None, now: float
    ) -> None:
        """The page that came for an ask: what is in it, and where to go on, as `control_schema.ReplayPage` says it."""
        topic = self._answer_for(ask)
        if topic is None:
            return
        self._answered_at = now
        stretch = topic.stretches[0]
        for event in messages:
            seq = event.message.seq
            if event.topic == ask.topic and event.message.boot_id == ask.boot_id and seq >= stretch.next:
                stretch.held.setdefault(seq, event)
                stretch.newest = max(stretch.newest, seq)
        if next_seq is not None and next_seq > ask.from_seq:
            stretch.settled = max(stretch.settled, min(next_seq, ask.from_seq + ask.limit) - 1)
        else:  # there is no more: what we knew of and did not get is not in the journal
            stretch.settled = max(stretch.settled, ask.newest)
            if ask.tail:
                stretch.over = False
                if next_boot_id is not None:
                    self._insert(topic, next_boot_id)
        self._settle(topic)

    def refused(self, ask: Ask, code: str, now: float) -> None:
        """The daemon said no, by the code of its reply; "timeout" if it said nothing."""
        topic = self._answer_for(ask)
        if topic is None:
            return
        if code in _AGAIN:
            topic.retry_at = now + RETRY_S
            return
        if code == "no_journal":
            self._journal = False
        topic.stretches[0].give_up()
        self._settle(topic)

    def tick(self, now: float) -> None:
        """Time has passed: give up what nobody answers, hand over what there is room for again."""
        for topic in list(self._busy.values()):
            if topic.wanted_at is not None and (topic.ask is not None or topic.stretches[0].open):
                unanswered_s = now - max(topic.wanted_at, self._answered_at)
                if unanswered_s > REPLAY_S or now - topic.wanted_at > CATCH_UP_S:
                    self._give_up(topic)
                    continue
            self._settle(topic)

    # -- inside -------------------------------------------------------------------------------------

    def _is_running(self, boot_id: str) -> bool:
        if boot_id in self._ended:
            return False
        if self.boot_id is not None and boot_id != self.boot_id:
            self._restart(self.boot_id, boot_id)
        self.boot_id = boot_id
        return True

    def _restart(self, old: str, new: str) -> None:
        self._emit(Restarted(old, new))
        self._ended.append(old)
        self._before = old if self._heard else None
        self._heard = False
        self._journal = True
        for topic in self._topics.values():
            topic.stretches[-1].over = True
            topic.stretches.append(_Stretch(new, next=1))
            if len(topic.stretches) > _BOOTS:
                del topic.stretches[1]  # the journal names it again, as the boot that came after the first
            self._settle(topic)

    def _new_topic(self, name: str, seq: int, *, begun: bool = True) -> _Topic:
        """A topic that shows for the first time, with `seq` the next one due if it was there before us."""
        assert self.boot_id is not None, "a message came, and so a boot is known"
        stretches: deque[_Stretch] = deque()
        if self._ended:
            if self._before is not None:  # it may have begun after that boot's last heartbeat
                stretches.append(_Stretch(self._before, next=1, over=True))
            stretches.append(_Stretch(self.boot_id, next=1))
        elif self._heard:
            stretches.append(_Stretch(self.boot_id, next=1))
        else:
            stretches.append(_Stretch(self.boot_id, next=seq, begun=begun))
        self._topics[name] = _Topic(name, stretches)
        return self._topics[name]

    def _insert(self, topic: _Topic, boot_id: str) -> None:
        """A boot that came and went unseen between two that we know."""
        known = {stretch.boot_id for stretch in topic.stretches}
        if boot_id not in known:
            topic.stretches.insert(1, _Stretch(boot_id, next=1, over=True))

    def _answer_for(self, ask: Ask) -> _Topic | None:
        topic = self._topics[ask.topic]
        if topic.ask is not ask:
            return None  # given up in the meantime
        topic.ask = None
        return topic if topic.stretches[0].boot_id == ask.boot_id else None

    def _give_up(self, topic: _Topic) -> None:
        topic.ask = topic.wanted_at = None
        for stretch in topic.stretches:
            stretch.give_up()
        self._settle(topic)

    def _settle(self, topic: _Topic) -> None:
        """Hand over what is in order, and what is lost, as far as the user has room."""
        while self._hand_over(topic.name, topic.stretches[0]) and len(topic.stretches) > 1:
            topic.stretches.popleft()
        if len(topic.stretches) == 1 and topic.stretches[0].complete:
            topic.wanted_at = topic.ask = None
            self._busy.pop(topic.name, None)
        else:
            self._busy[topic.name] = topic

    def _hand_over(self, name: str, stretch: _Stretch) -> bool:
        """True when the stretch has nothing left."""
        while stretch.next <= stretch.newest and self._room() > 0:
            event = stretch.held.pop(stretch.next, None)
            if event is not None:
                self._emit(event)
                stretch.next += 1
            elif stretch.next <= stretch.settled:
                last = min(stretch.settled, stretch.hole_end())
                self._emit(Lost(name, stretch.boot_id, stretch.next, last))
                stretch.next = last + 1
            else:
                break
        return stretch.complete

    def _held(self) -> int:
        return sum(len(stretch.held) for topic in self._busy.values() for stretch in topic.stretches)
