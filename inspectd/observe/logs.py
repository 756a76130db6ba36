"""The log: JSON lines for journald and files, pretty on a terminal; no credential ever gets into it.

journald gets each line with its keys as fields beside it, over its own socket (`journal_socket.py`).

structlog and the standard library's logging (which the libraries use) end in one handler. Before a
line is written, every text in it passes `redacted`: the event, values, nested ones, tracebacks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import numbers
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from inspectd.observe.journal_socket import JOURNAL_SOCKET, JournalSocket
from inspectd.source_spec import redact

LogFormat = Literal["auto", "json", "pretty"]
Level = Literal["debug", "info", "warning", "error"]

MAX_DEPTH = 8
"""Values nested deeper than this are written as their text."""
FIRST_KEYS = ("timestamp", "level", "event", "logger")


def configure_logging(
    format: LogFormat,  # noqa: A002 - the key's name in the configuration
    level: Level,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    journal: Path = JOURNAL_SOCKET,
) -> None:
    """Send every log line of this process to `stream` (stderr); may be called again.

    `auto` is pretty on a terminal and JSON elsewhere. Where the stream is journald's ($JOURNAL_STREAM
    names it), lines go to its socket `journal` instead, with their fields and priority: `journalctl -p warning
    INSPECTD_CAMERA=cam1` finds them, and `-o cat` still shows plain JSON. Without that socket the stream gets
    them, each begins with `<N>`, the syslog priority, and journald takes that off again.
    """
    stream = sys.stderr if stream is None else stream
    environ = os.environ if environ is None else environ
    terminal = stream.isatty()
    pretty = format == "pretty" or (format == "auto" and terminal)
    is_journal = _is_journal(stream, environ)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # no log line is hot, and a second call of this must take effect
    )
    handler = _JournalHandler(stream, journal) if is_journal and journal.is_socket() else _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.StackInfoRenderer(),
                _redact_and_order,
                *([handler.keep_fields] if isinstance(handler, _JournalHandler) else []),
                _pretty_renderer(colors=terminal and not environ.get("NO_COLOR"))
                if pretty
                else structlog.processors.JSONRenderer(ensure_ascii=False),
                *([_add_priority] if is_journal and not isinstance(handler, _JournalHandler) else []),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in ("matplotlib", "PIL", "torch", "faster_coco_eval"):  # they tell their whole lives
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def quiet_ffmpeg() -> None:
    """Keep FFmpeg's own messages off stderr; called by whoever has imported `av` already.

    They are dropped, not logged: FFmpeg writes them from its decoder threads, which would then have to
    wait for the interpreter lock in the middle of a picture, and one damaged stream writes hundreds a
    second. What matters arrives as an exception or as a frame marked corrupt.
    """
    import av.logging

    av.logging.set_level(None)


def redacted(value: object, depth: int = 0) -> Any:
    """The value as plain JSON data, with the credentials of every URL in any text of it replaced."""
    if value is None:
        return None
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, numbers.Real):  # numpy's are too
        return _plain_number(value)
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return {redact(str(key)): redacted(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [redacted(item, depth + 1) for item in value]
    return redact(_text(value))


class Counted:
    """Trouble that may come with every frame: counted where it happens, logged about once a second.

    `count` may be called from any thread. One thread, the main loop, calls `flush` on every turn.
    Each (event, labels) becomes one line with the number of times, `n`, within `over_s` seconds.
    """

    INTERVAL_S = 1.0
    MAX_KINDS = 100
    """Different lines in one interval; more are counted together, so that no label can fill the memory."""

    def __init__(self, logger: FilteringBoundLogger | None = None) -> None:
        self._log = logger or structlog.get_logger(__name__)
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()  # guarded by _lock

    def count(self, event: str, **labels: str) -> None:
        """It happened once more. Labels are few: names and reasons, never a number that grows."""
        key = (event, tuple(labels.items()))
        with self._lock:
            if key not in self._counts and len(self._counts) >= self.MAX_KINDS:
                key = ("more_kinds_of_trouble", ())
            self._counts[key] += 1

    def flush(self, now: float | None = None) -> None:
        """Log what was counted, if the last time is a second ago by `now`, `time.monotonic()` seconds."""
        now = time.monotonic() if now is None else now
        if now - self._since >= self.INTERVAL_S:
            self._write(now)

    def close(self) -> None:
        """Log what is left, at the end."""
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        over_s, self._since = round(now - self._since, 3), now
        for (event, labels), n in counts.items():
            self._log.warning(event, **dict(labels), n=n, over_s=over_s)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """A line that cannot be formatted or written: the default would print it, unredacted, with its arguments."""
        error = sys.exc_info()[0]
        with contextlib.suppress(OSError, ValueError):  # the stream itself may be what is broken
            self.stream.write(f"a log line of {record.name} was lost: {error.__name__ if error else 'unknown'}\n")


class _JournalHandler(_Handler):
    """Lines with their fields to journald's socket, and to the stream what that cannot take.

    A journal that does not keep up costs lines, not frames: they are counted, and the next line says how many.
    """

    def __init__(self, stream: TextIO, journal: Path) -> None:
        super().__init__(stream)
        self._journal = JournalSocket(journal)
        # Guarded by the handler's lock, which is held while a line is formatted and sent.
        self._fields: EventDict = {}
        self._priority = 6
        self._lost = 0

    def keep_fields(self, _logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        """A processor, the last one before the line becomes text."""
        self._fields, self._priority = dict(event_dict), _PRIORITY.get(method, 6)
        return event_dict

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self.format(record))
        except Exception:  # noqa: BLE001 - as logging's own handlers: no log line may end what logs it
            self.handleError(record)

    def _send(self, line: str) -> None:
        try:
            if self._lost:
                lost = {"event": "log_lines_lost", "n": self._lost}
                self._journal.send(json.dumps({"level": "warning"} | lost), _PRIORITY["warning"], lost)
                self._lost = 0
            self._journal.send(line, self._priority, self._fields)
        except BlockingIOError:
            self._lost += 1
        except OSError:  # too long for a datagram, or journald is away
            self.stream.write(_with_priority(line, self._priority) + self.terminator)
            self.flush()

    def close(self) -> None:
        self._journal.close()
        super().close()


def _redact_and_order(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    clean: dict[str, Any] = redacted(event_dict)
    return {key: clean.pop(key) for key in FIRST_KEYS if key in clean} | clean


def _pretty_renderer(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=colors,
        exception_formatter=structlog.dev.plain_traceback,  # never the one that prints local variables
    )


def _add_priority(_logger: WrappedLogger, method: str, line: object) -> str:
    return _with_priority(str(line), _PRIORITY.get(method, 6))


def _with_priority(text: str, priority: int) -> str:
    # journald takes every line of a stream for a message of its own.
    return f"<{priority}>" + text.replace("\n", f"\n<{priority}>")


_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream is the one that systemd connected to the journal, by device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _plain_number(value: Any) -> bool | int | float | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else str(number)  # JSON knows no NaN


def _text(value: object) -> str:
    try:
        return str(value) if isinstance(value, os.PathLike | BaseException) else repr(value)
    except Exception as err:  # noqa: BLE001 - a value that cannot be shown must not cost the log line
        return f"<unprintable {type(value).__name__}: {type(err).__name__}>"
