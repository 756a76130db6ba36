"""The commands that read a journal: export and verify. Registered by `cli`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TextIO

import typer

from inspectd.errors import InspectdError, UsageError

app = typer.Typer(help="Read the journal: what was published, and what happened around it.", no_args_is_help=True)

Journal = Annotated[Path | None, typer.Argument(metavar="PATH", help="The journal file.", show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", help="Instead of PATH: the configuration that names it."),
]

MAX_FAULTS = 20
"""Lines that verify prints of each sort; what is found beyond them is counted."""
MIN_HEAD_DIGITS = 16


@app.command()
def export(
    path: Journal = None,
    config: Config = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="One line per row, for a spreadsheet.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="One JSON object per line, with the whole message.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From then on: 2026-01-31T06:00:00Z, or ago: 15m, 2h, 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Until before then.")] = None,
    topic: Annotated[str | None, typer.Option(metavar="PREFIX", help="Only topics that begin so.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Instead of standard output; replaced when done."),
    ] = None,
) -> None:
    """Write the journal's rows as CSV or JSON lines, also while the daemon runs."""
    from inspectd.verdict.journal.export import Selection, export, parse_time

    if as_csv == as_jsonl:
        raise UsageError("say --csv or --jsonl")
    journal = _journal(path, config)
    now_us = time.time_ns() // 1000
    selection = Selection(
        since_us=None if since is None else parse_time(since, now_us),
        until_us=None if until is None else parse_time(until, now_us),
        topic=topic,
    )
    with _output(output, journal) as out:
        rows = export(journal, out, "csv" if as_csv else "jsonl", selection)
    print(f"{rows:,} rows", file=sys.stderr)


@app.command()
def verify(
    path: Journal = None,
    config: Config = None,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head that was noted earlier: some row must still carry it.")
    ] = None,
) -> None:
    """Find rows that were changed, exchanged, inserted or removed; 0: every row is as it was written, 1: it is not."""
    from inspectd.verdict.journal.row import recorded_at
    from inspectd.verdict.journal.verify import verify

    if head is not None:
        head = head.strip().lower()
        if not MIN_HEAD_DIGITS <= len(head) <= 64 or set(head) - set("0123456789abcdef"):
            raise UsageError(f"--head: expected the {MIN_HEAD_DIGITS} to 64 hexadecimal digits that verify printed")
    journal = _journal(path, config)
    found = verify(journal, head)
    if found.rows == 0 and not found.faults:
        raise UsageError(f"{journal}: is empty; the daemon has not written a row yet")
    _print_some("lost  ", found.lost)
    _print_some("FAULT ", found.faults)
    pruned = f", rows before {found.first_number} were pruned" if found.pruned else ""
    print(f"{journal}: {found.rows:,} rows, {found.messages:,} messages of {found.boots} boots{pruned}")
    if found.first_us is not None and found.last_us is not None:
        print(f"from {recorded_at(found.first_us)} to {recorded_at(found.last_us)}")
    if found.noted_number is not None:
        unchanged = "" if found.faults else ": nothing up to it was changed"
        print(f"the noted head is row {found.noted_number}{unchanged}")
    print(f"head {found.head_number} {found.head_hash}")
    if found.faults:
        print(f"NOT as it was written: {len(found.faults)} faults")
        sys.exit(1)
    print("ok: every row is as it was written and fits the row before it")


def _print_some(word: str, lines: list[str]) -> None:
    for line in lines[:MAX_FAULTS]:
        print(word, line)
    if len(lines) > MAX_FAULTS:
        print(word, f"and {len(lines) - MAX_FAULTS:,} more of these")


def _journal(path: Path | None, config: Path | None) -> Path:
    if (path is None) == (config is None):
        raise UsageError("name the journal's file, or with -c the configuration that names it, and not both")
    if path is not None:
        return path
    from inspectd.config import load_settings

    assert config is not None
    settings = load_settings(config)
    if settings.journal.path is None:
        raise UsageError(f"{config}: journal.path is not set, so there is no journal")
    return settings.journal.path


@contextmanager
def _output(path: Path | None, journal: Path) -> Iterator[TextIO]:
    """Standard output, or a file that appears when it is whole."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()  # before anybody is told how many rows there are
        return
    if path.exists() and journal.exists() and path.samefile(journal):
        raise UsageError(f"-o {path}: is the journal itself")
    if path.is_dir():
        raise UsageError(f"-o {path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(
            f"-o {path}: is no plain file, and would be replaced by one; leave -o out and redirect the output"
        )
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("w", encoding="utf-8", newline="") as out:
            yield out
        beside.replace(path)
    except OSError as err:
        raise InspectdError(f"-o {path}: cannot be written: {err.strerror}") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
