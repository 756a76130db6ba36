"""Where a report goes, and how it gets there: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from inspectd.errors import InspectdError, UsageError

REPORT_HTML, REPORT_JSON = "report.html", "report.json"


def refuse_output(output: Path, bundle: Path, data: Path) -> None:
    """Say at once where nothing can or should be written, before minutes of work.

    Raises:
        UsageError: `output` is a file, cannot be written to, or lies in the bundle or among the pictures.
    """
    for parent, what in ((bundle, "the bundle"), (data, "the pictures")):
        if output.resolve().is_relative_to(parent.resolve()):
            raise UsageError(f"{output}: lies in {what} ({parent}), which a report would change; give another -o")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is a file; the report needs a directory, give another -o")
    above = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{output}: cannot be written to ({above} is not writable); give another -o")


def write_report(output: Path, files: Mapping[str, str]) -> None:
    """Write the files, UTF-8, under temporary names, and rename them when every one is whole.

    Raises:
        InspectdError: the disk is full, or the like; nothing is left half-written.
    """
    temporary = {name: output / f".{name}.new-{os.getpid()}" for name in files}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with temporary[name].open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for name, path in temporary.items():
            path.replace(output / name)
    except OSError as err:
        raise InspectdError(f"{output}: the report cannot be written: {err.strerror or err}") from err
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
