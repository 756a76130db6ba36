"""The one way to OpenVINO: its import reports to its makers over the network unless it is kept from that."""

from __future__ import annotations

import sys
from typing import Any


def import_openvino() -> Any:
    """The `openvino` module, imported without telemetry. Call it before nncf is imported, too.

    Importing `openvino` 2026.4 starts `openvino_telemetry`, which writes an id below the home directory
    and sends an event unless the user opted out by hand (`openvino/tools/ovc/__init__.py`). Where that
    package cannot be imported, openvino and nncf both fall back to stubs of their own.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino
