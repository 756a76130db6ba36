"""The one way to OpenVINO: its import reports to its makers over the network unless it is kept from that."""

from __future__ import annotations

import sys
import threading
from typing import Any

_core: Any = None  # guarded by _core_lock
_core_lock = threading.Lock()


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


def openvino_core() -> Any:
    """The process's one `openvino.Core`, which lives as long as the process.

    OpenVINO's CPU plugin gives the thread that makes it a signal stack of its own size (AMX state is large), and
    frees it wherever the last core and model happen to be dropped. From then on the first signal that reaches the
    first thread ends the process with SIGSEGV. A core that is never dropped never frees it.
    """
    global _core  # noqa: PLW0603 - one for the process is the point
    with _core_lock:
        if _core is None:
            core = import_openvino().Core()
            # A mapped model.bin that is overwritten in place could change weights that are running.
            core.set_property({"ENABLE_MMAP": False})
            _core = core
        return _core
