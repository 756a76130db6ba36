"""Which recipe is in force, remembered in the journal: a start after whatever end goes on with it, or says it cannot.

Every start writes down what it begins with. Before the recipes are exchanged the new one is on disk as `known: false`,
and once it is at work, or the old one has stayed, what is in force as `known: true`. So the newest row is never that
of a recipe which was left. It also says which one the configuration named then: where that is another by now, somebody
has chosen since, as by a reload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from inspectd.config import Settings
from inspectd.verdict.control_schema import ControlError
from inspectd.verdict.journal import Journal

log = structlog.get_logger(__name__)

WRITE_S = 1.0
"""So long a row may take to the disk."""


class RecipeMemory:
    """Without a journal nothing is remembered: every start begins with the configured recipe."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._configured: str | None = None

    def at_start(self, settings: Settings) -> tuple[str | None, bool]:
        """The recipe to begin with, and whether it is known to be right: the one that was in force at the end.

        A journal that cannot be read, or does not say it in whole, does not know; then the line must be told before
        anything passes.
        """
        self._configured = configured = settings.recipe
        if self._journal is None or not settings.recipes:
            return configured, True
        readable = self._journal.state == "ok"  # asked first: it may become so meanwhile
        last = self._journal.last_event("recipe")
        if last is None:
            return configured, readable
        if "recipe" not in last:
            log.error("recipe_unreadable", instead=configured)
            return configured, False
        if last.get("configured", configured) != configured:
            return configured, True
        recipe = last["recipe"]
        if recipe is not None and (not isinstance(recipe, str) or recipe not in settings.recipes):
            log.warning("recipe_gone", recipe=recipe, instead=configured)
            return configured, False
        return recipe, last.get("known", True) is True

    def reconfigured(self, settings: Settings) -> None:
        """The configuration was read anew: what is written from now on was chosen beside this one."""
        self._configured = settings.recipe

    def begin_change(self, to: Mapping[str, Any]) -> None:
        """Have it on disk that the recipe is being changed; until `settle` a start does not know which one is right.

        Raises:
            ControlError: `journal_failing`: a start would go on with the recipe that is to be left.
        """
        if self._journal is not None and not self._write(to, known=False):
            raise ControlError("journal_failing", "a recipe is changed only once the journal has it; the old one stays")

    def settle(self, in_force: Mapping[str, Any], *, known: bool) -> None:
        """What is in force now. Where this does not reach the disk, a start after a change has to be told."""
        if self._journal is not None:
            self._write(in_force, known=known)

    def _write(self, what: Mapping[str, Any], *, known: bool) -> bool:
        assert self._journal is not None
        row = {**what, "configured": self._configured, "known": known}
        return self._journal.event("recipe", row) and self._journal.flush(WRITE_S)
