"""Every error that inspectd raises on purpose.

    InspectdError                   1  something failed while running
    ├── UsageError                  2  what the user gave is wrong; nothing was started
    │   ├── ConfigError             2  configuration file, environment or secret
    │   ├── BundleError             2  model bundle missing, tampered with, too new
    │   └── DataError               2  pictures or labels
    ├── CaptureError                   a source ended or failed; the camera supervisor retries
    ├── EngineError                    one batch failed; its crops become no_result(engine_error)
    │   └── FatalEngineError        1  the device is gone; only a restart helps
    ├── ControlRefused, ControlTimeout  1  a running daemon said no, or nothing (inspectd.client)
    └── Stopped                        a blocking call was cut short because its owner is stopping

The number is the exit code of the command line. Messages are one line and name what to change.
"""

from __future__ import annotations

from typing import Literal

CaptureReason = Literal[
    "refused",  # nobody listens, or the device does not exist
    "auth",  # the camera wants other credentials
    "timeout",  # it accepted and never answered, or a read took too long
    "ended",  # end of a live stream, or the server closed it
    "decode",  # what arrives is no video that can be decoded
    "replaced",  # another camera is where the expected one was
    "settings",  # the camera does not accept the configured size, rate or control
    "stall",  # connected, but no frame for stall_timeout_s
    "hung",  # the capture thread did not come back from a library call
    "stale",  # what arrives stays older than max_age_ms; only a new connection has no backlog
    "finished",  # a file was played to its end
    "internal",  # a defect of ours; the log has the traceback
]
"""Why a camera is away: the label of `inspectd_camera_reconnects_total` and the reason in `status/`."""


class InspectdError(Exception):
    """Base of every error raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1

    def __str__(self) -> str:
        # Names of files, keys and devices come from outside: none of them writes a second line, or to the terminal.
        return "".join(character if character.isprintable() else "\ufffd" for character in super().__str__())


class UsageError(InspectdError):
    """What the user gave is wrong, and it was found before anything started."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is wrong; the message names the key as the user wrote it."""


class BundleError(UsageError):
    """The model bundle is missing, incomplete, changed on disk, or of a newer format."""


class DataError(UsageError):
    """Pictures or labels that cannot be used."""


class CaptureError(InspectdError):
    """A source failed or ended. `reason` is one of `CaptureReason`, for status and metrics."""

    def __init__(self, reason: CaptureReason, message: str) -> None:
        super().__init__(message)
        self.reason: CaptureReason = reason


class EngineError(InspectdError):
    """One batch could not be inferred. The engine itself goes on."""


class FatalEngineError(EngineError):
    """The device is unusable. The process must exit and be restarted by its supervisor."""


class Stopped(InspectdError):  # noqa: N818 - a state, not a mistake
    """A blocking call was cut short because its owner is stopping."""
