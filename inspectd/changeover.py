"""Changes while the line runs: recipes, re-read configuration, challenges. One after the other, in one thread.

The new line-up is loaded, warmed up and challenged while the old one goes on; only then are they exchanged.
Whatever fails before that leaves the old one in force.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event
from typing import Any, Protocol

import structlog
from pydantic import BaseModel

from inspectd.challenge import ChallengeResult, failures, run_challenge
from inspectd.command_queue import CommandQueue, stopping
from inspectd.config import Settings
from inspectd.config.diff import Change, changes, take_live
from inspectd.errors import InspectdError, Stopped, UsageError
from inspectd.heap import forget_what_went
from inspectd.lineup import LineUp, Wiring
from inspectd.observe.metrics import Metrics
from inspectd.preflight import changed_content, check_settings
from inspectd.recipe_memory import RecipeMemory
from inspectd.source_spec import redact
from inspectd.station import Station
from inspectd.verdict.control_schema import (
    ChallengeRequest,
    ControlError,
    RecipeRequest,
    ReloadRequest,
    Request,
)
from inspectd.verdict.publisher import Answer
from inspectd.workers import BEAT_S, Worker

log = structlog.get_logger(__name__)

WAITING = 4
"""Commands that may wait for the one that is under way; the next is refused as busy."""
STEP_S = 120.0
"""Loading and compiling another line-up takes seconds, a golden picture less. After so long a step never comes to its
end."""


class Events(Protocol):
    """The part of the journal that takes note of changes."""

    def event(self, kind: Any, data: Mapping[str, Any]) -> bool: ...


class _Models(BaseModel):
    recipe: str | None
    config: str
    models: list[str]


class _Reloaded(_Models):
    applied: list[str]
    restart: list[str]


class Changeover:
    """Takes commands from the control socket, from SIGHUP and from the clock.

    There is a `problem` from the moment a challenge fails until one is passed, and while nobody knows which recipe is
    wanted; the publisher is told at once, and vouches for nothing.
    """

    def __init__(
        self,
        settings: Settings,
        station: Station,
        wiring: Wiring,
        *,
        reread: Callable[[], Settings] | None,
        vouch: Callable[[bool], None],
        metrics: Metrics,
        journal: Events | None,
        memory: RecipeMemory,
        on_failure: Callable[[BaseException], None],
        recipe_known: bool = True,
    ) -> None:
        self.challenge: ChallengeResult | None = None  # the last one; swapped whole
        self._settings = settings  # as loaded, outside any recipe
        self._station = station
        self._wiring = wiring
        self._reread = reread
        self._vouch = vouch
        self._metrics = metrics
        self._journal = journal
        self._memory = memory
        self._commands = CommandQueue(WAITING)
        self.worker = Worker("changeover", self._run, on_failure)
        self._challenge_at = float("inf")
        self._recipe_known = recipe_known

    # -- any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        self._schedule()
        self._commands.open()
        self.worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Refuse what waits; what is under way is given up at its next step, and answered also where that is far."""
        self.worker.signal()
        self._commands.close()
        gone = self.worker.stop(timeout_s)
        self._commands.answer(stopping())
        return gone

    def command(self, request: Request, answer: Answer) -> None:
        """Have it done; `answer` is called in the thread "changeover".

        Raises:
            ControlError: too many wait already, or the daemon is being stopped.
        """
        self._commands.put(request, answer)

    def begin(self) -> None:
        """Before the thread runs: challenge the first line-up, and say what is in force."""
        self._challenge_running()
        lineup = self._station.lineup
        lineup.show()
        self._metrics.show_recipe(lineup.recipe, lineup.config)

    @property
    def problem(self) -> str | None:
        """Why nothing may pass, or None."""
        if not self._recipe_known:
            return "the recipe is not known, choose one"
        return None if self.challenge is None or self.challenge.passed else "the challenge failed"

    # -- the thread "changeover" ----------------------------------------------------------------------

    def _run(self, stop: Event) -> None:
        try:
            while not stop.is_set():
                self._turn()
        finally:
            self._commands.close()
            self._commands.answer(stopping())  # what an exception broke off

    def _turn(self) -> None:
        if time.monotonic() >= self._challenge_at:  # before any command, however many there are
            with suppress(Stopped):
                self._step()
                self._challenge_running()
                self._schedule()
        self.worker.beat()
        if (request := self._commands.take(BEAT_S)) is not None:
            result = self._do(request)
            forget_what_went()  # the line-up that was left, or refused
            self._commands.answer(result)

    def _step(self) -> None:
        """Between two steps of what is under way: a sign of life, and where it ends when the daemon is being stopped.

        Raises:
            Stopped: it is.
        """
        self.worker.beat(STEP_S)
        if self.worker.stopping.is_set():
            raise Stopped("the daemon is being stopped")

    def _do(self, request: Request) -> BaseModel | ControlError:
        try:
            self._step()
            return self._result(request)
        except ControlError as refusal:
            return refusal
        except Stopped:
            log.warning("change_given_up", op=request.op)
            return stopping()
        except InspectdError as err:
            message = redact(" ".join(str(err).split()))
            log.error("change_refused", op=request.op, why=message)  # noqa: TRY400 - the message says it all
            return ControlError("refused" if isinstance(err, UsageError) else "internal", message)
        except Exception:  # nothing was exchanged yet: the line goes on as it is, and people are told
            log.exception("change_failed", op=request.op)
            return ControlError("internal", "it failed and was given up, see the log")

    def _result(self, request: Request) -> BaseModel:
        match request:
            case RecipeRequest():
                return self._change_recipe(request.name)
            case ReloadRequest():
                return self._reload()
            case ChallengeRequest():
                return self._answer_challenge()
            case _:
                raise ControlError("unknown_op", f"{request.op} is no command")

    def _change_recipe(self, name: str | None) -> BaseModel:
        if name is not None and name not in self._settings.recipes:
            known = ", ".join(self._settings.recipes) or "none"
            raise ControlError("unknown_recipe", f"no recipe {name!r}; known: {known}")
        self._take(self._settings.with_recipe(name), "recipe")
        self._recipe_known = True
        self._memory.settle(self._station.lineup.identity, known=True)
        self._vouch(self.problem is None)
        return self._in_force()

    def _reload(self) -> BaseModel:
        if self._reread is None:
            raise ControlError("refused", "this daemon was not started from a file")
        new = self._reread()
        found = changes(self._settings, new)
        wanted = take_live(self._settings, new)
        recipe = new.recipe if new.recipe != self._settings.recipe else self._station.lineup.recipe
        if recipe is not None and recipe not in wanted.recipes:
            raise ControlError("refused", f"recipe {recipe!r} is in force, but not in the new configuration")
        effective = wanted.with_recipe(recipe)
        content = changed_content(self._station.lineup, effective, self._step)
        applied = [str(change) for change in found if change.live] + content
        restart = [str(change) for change in found if not change.live]
        if applied:
            self._take(effective, "config")
            self._memory.reconfigured(wanted)
            self._memory.settle(self._station.lineup.identity, known=self._recipe_known)
            self._settings = wanted
        self._say_reloaded(found, applied, restart)
        return _Reloaded(**self._in_force().model_dump(), applied=applied, restart=restart)

    def _say_reloaded(self, found: list[Change], applied: list[str], restart: list[str]) -> None:
        log.info("reloaded", applied=applied, config=self._station.lineup.config)
        if restart:
            log.warning("restart_needed", changes=restart)
        if self._journal is not None and found:
            self._journal.event("config", {"applied": applied, "restart": restart, **self._in_force().model_dump()})

    def _take(self, effective: Settings, why: str) -> None:
        """Load, challenge, switch. Whatever fails leaves everything as it was.

        Raises:
            InspectdError: it cannot be run, or fails its challenge.
        """
        started = time.monotonic()
        lineup = LineUp(effective, check_settings(effective, self._step), self._wiring)
        self._station.check(lineup)
        lineup.start()
        try:
            self._step()
            result = self._passed_challenge(lineup)
            self._exchange(lineup)
        except BaseException:
            lineup.stop()
            raise
        self._pass_judgement(result, lineup)
        self._schedule()
        self._metrics.show_recipe(lineup.recipe, lineup.config)
        took_s = round(time.monotonic() - started, 3)
        log.info("changed_over", why=why, recipe=lineup.recipe, config=lineup.config, took_s=took_s)

    def _exchange(self, lineup: LineUp) -> None:
        """Put it to work; another recipe only once a start would not go on with the old one.

        Raises:
            ControlError, InspectdError: the old one goes on.
        """
        old = self._station.lineup
        if lineup.recipe == old.recipe and self._recipe_known:
            self._station.switch(lineup)
            return
        try:
            self._memory.begin_change(lineup.identity)
            self._station.switch(lineup)
        except (ControlError, InspectdError):
            self._memory.settle(old.identity, known=self._recipe_known)
            raise

    def _passed_challenge(self, lineup: LineUp) -> ChallengeResult:
        result = run_challenge(lineup, self._step)
        if not result.passed:
            self._note_challenge(result, lineup)
            raise UsageError(f"the challenge failed: {'; '.join(failures(result))}")
        return result

    # -- challenges -----------------------------------------------------------------------------------

    def _answer_challenge(self) -> BaseModel:
        if not self._station.lineup.settings.challenge.pictures:
            raise ControlError("no_challenge", "challenge.pictures names no golden picture")
        self._challenge_running()
        self._schedule()
        assert self.challenge is not None
        return self.challenge

    def _challenge_running(self) -> None:
        lineup = self._station.lineup
        try:
            result = run_challenge(lineup, self._step)
        except Stopped:
            raise
        except InspectdError as err:  # a picture that is gone proves nothing
            log.error("challenge_unreadable", why=str(err))  # noqa: TRY400 - the message says it all
            result = ChallengeResult(passed=False, pictures=[])
        except Exception:  # nor does one that could not be judged
            log.exception("challenge_broken_off")
            result = ChallengeResult(passed=False, pictures=[])
        self._pass_judgement(result, lineup)

    def _pass_judgement(self, result: ChallengeResult, lineup: LineUp) -> None:
        """What the last challenge says of the line-up at work."""
        self.challenge = result if lineup.settings.challenge.pictures else None
        self._vouch(self.problem is None)
        self._metrics.vouched(result.passed)
        if self.challenge is not None:
            self._note_challenge(result, lineup)

    def _note_challenge(self, result: ChallengeResult, lineup: LineUp) -> None:
        self._metrics.challenge(result.passed)
        if result.passed:
            log.info("challenge_passed", pictures=len(result.pictures), config=lineup.config)
        else:
            log.error("challenge_failed", wrong=failures(result), config=lineup.config)
        if self._journal is not None:
            self._journal.event("challenge", {"config": lineup.config, **result.model_dump()})

    def _schedule(self) -> None:
        every_s = self._station.lineup.settings.challenge.every_s
        self._challenge_at = time.monotonic() + every_s if every_s else float("inf")

    def _in_force(self) -> _Models:
        return _Models(**self._station.lineup.identity)
