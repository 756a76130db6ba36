"""The tables of docs/plc.md, from the code that serves them.

    python -m inspectd.bridge.document docs/plc.md

writes each table between its marks, `<!-- NAME: generated -->` and `<!-- end -->`, and leaves the prose alone. A
test fails when the page is not current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inspectd.bridge import codes, modbus_map, opcua_tree


def tables() -> dict[str, str]:
    """Every generated table by its name, as Markdown."""
    return {
        "verdicts": _codes(codes.VERDICTS, in_hex=True),
        "reasons": _codes(codes.REASONS),
        "states": _codes(codes.STATES),
        "errors": _codes(codes.ERRORS),
        "line registers": _registers(modbus_map.LINE),
        "camera registers": _registers(modbus_map.CAMERA),
        "region registers": _registers(modbus_map.ROI),
        "line bits": _bits(modbus_map.LINE_BITS),
        "camera bits": _bits(modbus_map.CAMERA_BIT_TABLE),
        "line variables": _variables(opcua_tree.LINE),
        "camera variables": _variables(opcua_tree.CAMERA),
        "region variables": _variables(opcua_tree.ROI),
        "status codes": _status_codes(),
        "methods": _methods((opcua_tree.TRIGGER, opcua_tree.SELECT_RECIPE)),
        "refusals": _table(("status", "when"), ((f"`{status}`", why) for status, why in _refusals())),
        "result fields": _variables(opcua_tree.RESULT_FIELDS),
        "ready fields": _variables(opcua_tree.READY_FIELDS),
    }


def document(page: str) -> str:
    """A page with its tables renewed.

    Raises:
        ValueError: a mark names no table, or a table has no mark.
    """
    known = tables()
    used = set()

    def renew(match: re.Match[str]) -> str:
        used.add(match[1])
        if match[1] not in known:
            raise ValueError(f"there is no table {match[1]!r}; there are {', '.join(known)}")
        return f"<!-- {match[1]}: generated -->\n{known[match[1]]}\n<!-- end -->"

    renewed = re.sub(r"<!-- ([a-z ]+): generated -->.*?<!-- end -->", renew, page, flags=re.DOTALL)
    if missing := sorted(set(known) - used):
        raise ValueError(f"the page has no place for {', '.join(missing)}")
    return renewed


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _codes(table: Iterable[codes.Code], *, in_hex: bool = False) -> str:
    rows = (
        (f"{code.number} (`0x{code.number:04X}`)" if in_hex else code.number, f"`{code.name}`", code.meaning)
        for code in table
    )
    return _table(("number", "name", "meaning"), rows)


def _registers(table: Iterable[modbus_map.Register[Any]]) -> str:
    rows = (
        (
            f"+{each.offset}" if each.words == 1 else f"+{each.offset}, +{each.offset + 1}",
            each.type,
            "write" if each.writable else "read",
            f"`{each.name}`",
            each.meaning.removeprefix("write: "),
        )
        for each in table
    )
    return _table(("address", "type", "PLC", "name", "meaning"), rows)


def _bits(table: Iterable[modbus_map.Bit[Any]]) -> str:
    rows = (
        (
            f"+{each.offset}",
            "write" if each.writable else "read",
            f"`{each.name}`",
            each.meaning.removeprefix("coil, write: "),
        )
        for each in table
    )
    return _table(("address", "PLC", "name", "meaning"), rows)


def _variables(table: Iterable[opcua_tree.Variable[Any]]) -> str:
    variables = list(table)
    header = ["name", "type", "meaning"]
    if any(each.guarded for each in variables):
        rows = ([f"`{v.name}`", v.type, "bad, no value" if v.guarded else "good", v.meaning] for v in variables)
        return _table(["name", "type", "while nothing may be concluded", "meaning"], rows)
    return _table(header, ([f"`{each.name}`", each.type, each.meaning] for each in variables))


def _status_codes() -> str:
    return _table(("reason", "status"), ((f"`{code.name}`", f"`{name}`") for code, name in opcua_tree.BAD.items()))


def _methods(table: Iterable[opcua_tree.Method]) -> str:
    rows = (
        (
            f"`{method.name}`",
            "<br>".join(f"`{each.name}` {each.type}: {each.meaning}" for each in method.inputs),
            "<br>".join(f"`{each.name}` {each.type}: {each.meaning}" for each in method.outputs),
            method.meaning,
        )
        for method in table
    )
    return _table(("method", "gets", "gives", "meaning"), rows)


def _refusals() -> Iterable[tuple[str, str]]:
    """Each status code once, with all that it stands for."""
    meanings = {code.name: code.meaning for code in codes.ERRORS}
    statuses: dict[str, list[str]] = {}
    for error, status in opcua_tree.REFUSALS.items():
        statuses.setdefault(status, []).append(meanings[error])
    yield from ((status, "; or ".join(why)) for status, why in statuses.items())
    yield "BadInternalError", "everything else; the log of the bridge has inspectd's words"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(document(path.read_text(encoding="utf-8")), encoding="utf-8")
