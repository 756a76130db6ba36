"""What can be asked of the daemon, and how its replies are read. No sockets here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from inspectd.errors import InspectdError, UsageError
from inspectd.verdict.control_schema import (
    MAX_REPLAY,
    ChallengeRequest,
    RecipeRequest,
    ReloadRequest,
    ReplayPage,
    ReplayRequest,
    Request,
    StatusRequest,
    TriggerAccepted,
    TriggerRequest,
)

T = TypeVar("T")
Reply = Mapping[str, Any]

ASK_S = 2.5
"""How long an answer is waited for that the daemon has at hand, from the call on."""
CHANGE_S = 120.0
"""The same where it first loads models or judges pictures."""


class ControlRefused(InspectdError):  # noqa: N818 - says what happened, as Stopped does
    """The daemon said no. `code` is one of `control_schema.ErrorCode`, `message` is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ControlTimeout(InspectdError):  # noqa: N818 - as ControlRefused
    """No answer came in time. Unless nobody was there to be asked, it may have been carried out all the same."""


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """A request, and the reading of its reply. `read` raises ValueError."""

    request: Request
    read: Callable[[Reply], T]
    timeout_s: float

    def result(self, reply: Reply) -> T:
        """What a reply says.

        Raises:
            ControlRefused: it is a refusal, or cannot be read.
        """
        if not reply.get("ok"):
            error = reply.get("error")
            error = error if isinstance(error, dict) else {}
            raise ControlRefused(str(error.get("code", "internal")), str(error.get("message", "no reason given")))
        try:
            return self.read(reply)
        except ValueError as err:
            why = " ".join(str(err).split())[:200]
            raise ControlRefused("internal", f"the reply to {self.request.op} cannot be read: {why}") from None


def trigger(camera: str, part_id: str | None, deadline_ms: float, timeout_s: float) -> Command[TriggerAccepted]:
    request = _request(TriggerRequest, op="trigger", camera=camera, part_id=part_id, deadline_ms=deadline_ms)
    return Command(request, TriggerAccepted.model_validate, timeout_s)


def replay(topic: str, from_seq: int, boot_id: str | None, limit: int, timeout_s: float) -> Command[ReplayPage]:
    request = _request(ReplayRequest, op="replay", topic=topic, from_seq=from_seq, boot_id=boot_id, limit=limit)
    return Command(request, ReplayPage.model_validate, timeout_s)


def status(timeout_s: float) -> Command[dict[str, Any]]:
    return Command(StatusRequest(op="status"), _plain, timeout_s)


def reload(timeout_s: float) -> Command[dict[str, Any]]:
    return Command(ReloadRequest(op="reload"), _plain, timeout_s)


def challenge(timeout_s: float) -> Command[dict[str, Any]]:
    return Command(ChallengeRequest(op="challenge"), _plain, timeout_s)


def recipe(name: str | None, timeout_s: float) -> Command[dict[str, Any]]:
    return Command(_request(RecipeRequest, op="recipe", name=name), _plain, timeout_s)


R = TypeVar("R", bound=BaseModel)


def _request(model: type[R], **fields: Any) -> R:
    """A request.

    Raises:
        UsageError: an argument that no daemon would take; one line that names it.
    """
    try:
        return model(**fields)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{fields['op']}: {where}: {first['msg']}") from None


def _plain(reply: Reply) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key not in ("ok", "op", "id")}


class Commands(ABC):
    """The requests as methods that wait for their reply; `_ask` carries them.

    Every method raises ControlRefused when the daemon says no, ControlTimeout when no answer came within
    `timeout_s`, and UsageError for an argument that no daemon would take.
    """

    @abstractmethod
    def _ask(self, command: Command[T]) -> T:
        """Send it and wait for its reply."""

    def trigger(
        self, camera: str, part_id: str | None = None, *, deadline_ms: float, timeout_s: float = ASK_S
    ) -> TriggerAccepted:
        """Have the next part inspected. Returns once it is accepted; the verdicts come as events, one per ROI,
        by the deadline (milliseconds from the acceptance), with this `trigger_id`.

        The picture is one from after the acceptance, and that comes within `timeout_s` of this call: give no more than
        the part stays. After ControlTimeout another part may be inspected all the same: ask again with another
        part_id, or not at all.
        """
        return self._ask(trigger(camera, part_id, deadline_ms, timeout_s))

    def replay(
        self,
        topic: str,
        from_seq: int = 1,
        boot_id: str | None = None,
        *,
        limit: int = MAX_REPLAY,
        timeout_s: float = ASK_S,
    ) -> ReplayPage:
        """One page of what was published on a topic, from the journal; without `boot_id` by the running daemon."""
        return self._ask(replay(topic, from_seq, boot_id, limit, timeout_s))

    def status(self, *, timeout_s: float = ASK_S) -> dict[str, Any]:
        """The daemon's state, cameras, models, recipe, journal and last challenge, as the daemon words them."""
        return self._ask(status(timeout_s))

    def recipe(self, name: str | None, *, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        """Switch to a recipe, None is what stands outside the recipes; returns once it is in force."""
        return self._ask(recipe(name, timeout_s))

    def reload(self, *, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        """Have the configuration file read again: what was applied, and what needs a restart."""
        return self._ask(reload(timeout_s))

    def challenge(self, *, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        """Have the golden pictures judged now."""
        return self._ask(challenge(timeout_s))
