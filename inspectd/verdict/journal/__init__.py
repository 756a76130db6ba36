"""The journal: every message that was published, and what happened around it, in a SQLite file that shows tampering."""

from inspectd.verdict.journal.health import JournalMetrics
from inspectd.verdict.journal.journal import Journal
from inspectd.verdict.journal.replay import ReplayDesk
from inspectd.verdict.journal.row import EventKind

__all__ = ["EventKind", "Journal", "JournalMetrics", "ReplayDesk"]
