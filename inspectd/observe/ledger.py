"""The accounting: every frame of every ROI is captured, and then settled exactly once.

For each camera and ROI, at every instant:

    captured + without_frame == sum(verdicts) + sum(dropped) + in_flight

`without_frame` is 0 in free run. It counts the verdicts about no frame of their own: that a trigger's time was
over before one came, and further triggers that one frame answers. All sides are counted where they happen,
under one lock, and read together (`snapshot`), so that every scrape of `/metrics` sees the identity hold;
`in_flight` is the number of open tickets.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

NOT_IN_RECIPE = "not_in_recipe"


@dataclass(slots=True, eq=False)
class Ticket:
    """One frame's obligation towards one ROI; settled once, by a verdict or by a drop."""

    camera: str
    roi: str
    settled: bool = False  # guarded by Ledger._lock


@dataclass(frozen=True, slots=True)
class RoiCounts:
    camera: str
    roi: str
    captured: int
    without_frame: int
    in_flight: int
    verdicts: dict[tuple[str, str], int]  # (verdict, reason) -> count
    dropped: dict[str, int]  # reason -> count
    defects: dict[str, int]  # label -> count

    @property
    def balanced(self) -> bool:
        return (
            self.captured + self.without_frame
            == sum(self.verdicts.values()) + sum(self.dropped.values()) + self.in_flight
        )


@dataclass(slots=True)
class _Account:
    without_frame: int = 0
    in_flight: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Counts frames per camera and ROI. Every method may be called from any thread."""

    def __init__(self, rois: Iterable[tuple[str, str]]) -> None:
        self._lock = threading.Lock()
        # All guarded by _lock.
        self._captured: Counter[str] = Counter()
        self._accounts: dict[tuple[str, str], _Account] = {key: _Account() for key in rois}
        self._rois: dict[str, list[str]] = {}
        self._resting: dict[str, list[_Account]] = {}  # of ROIs that are not inspected now
        for camera, roi in self._accounts:
            self._captured[camera] = 0
            self._rois.setdefault(camera, []).append(roi)

    def inspect_only(self, camera: str, rois: Iterable[str]) -> None:
        """From the next frame on these are the camera's ROIs, in this order.

        Others that it had keep their account: for them a frame is dropped("not_in_recipe"), and so were the
        frames before a new one's time.
        """
        with self._lock:
            self._rois[camera] = list(rois)
            for roi in self._rois[camera]:
                if (camera, roi) not in self._accounts:
                    account = self._accounts[camera, roi] = _Account()
                    account.dropped[NOT_IN_RECIPE] = self._captured[camera]
            self._resting[camera] = [
                account
                for (owner, roi), account in self._accounts.items()
                if owner == camera and roi not in self._rois[camera]
            ]

    def captured(self, camera: str) -> tuple[int, list[Ticket]]:
        """Count one captured frame: its index (from 0) and one open ticket per ROI, in config order."""
        with self._lock:
            index = self._captured[camera]
            self._captured[camera] = index + 1
            tickets = [Ticket(camera, roi) for roi in self._rois[camera]]
            for ticket in tickets:
                self._accounts[camera, ticket.roi].in_flight += 1
            for account in self._resting.get(camera, ()):
                account.dropped[NOT_IN_RECIPE] += 1
            return index, tickets

    def without_frame(self, camera: str, roi: str) -> Ticket:
        """An open ticket for a verdict that has no frame of its own."""
        with self._lock:
            account = self._accounts[camera, roi]
            account.without_frame += 1
            account.in_flight += 1
            return Ticket(camera, roi)

    def verdict(self, ticket: Ticket, verdict: str, reason: str, defect: str | None = None) -> None:
        """Settle by a published verdict; `reason` is "" where there is none, `defect` the failing label."""
        with self._lock:
            account = self._settle(ticket)
            account.verdicts[verdict, reason] += 1
            if defect is not None:
                account.defects[defect] += 1

    def dropped(self, ticket: Ticket, reason: str) -> None:
        """Settle by a drop: the frame was not judged and nothing was published for it."""
        with self._lock:
            self._settle(ticket).dropped[reason] += 1

    def snapshot(self) -> list[RoiCounts]:
        """All accounts at one instant."""
        with self._lock:
            return [
                RoiCounts(
                    camera=camera,
                    roi=roi,
                    captured=self._captured[camera],
                    without_frame=account.without_frame,
                    in_flight=account.in_flight,
                    verdicts=dict(account.verdicts),
                    dropped=dict(account.dropped),
                    defects=dict(account.defects),
                )
                for (camera, roi), account in self._accounts.items()
            ]

    @property
    def in_flight(self) -> int:
        """Open tickets over all cameras and ROIs."""
        with self._lock:
            return sum(account.in_flight for account in self._accounts.values())

    def _settle(self, ticket: Ticket) -> _Account:
        assert self._lock.locked()
        if ticket.settled:
            raise AssertionError(f"{ticket.camera}/{ticket.roi}: a frame was settled twice")
        ticket.settled = True
        account = self._accounts[ticket.camera, ticket.roi]
        account.in_flight -= 1
        return account
