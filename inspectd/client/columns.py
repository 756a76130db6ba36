"""A message of the stream as one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspectd.client.events import Received
from inspectd.verdict.schema import CameraStatus, Heartbeat, Part, Verdict

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = {
    "pass": "green",
    "fail": "bold red",
    "no_result": "yellow",
    "ready": "green",
    "busy": "cyan",
    "starting": "yellow",
    "fault": "bold red",
}


def render(received: Received) -> Text:
    """A message as one line in columns: time (UTC), topic, seq, what it says."""
    from rich.text import Text

    message = received.message
    line = Text(f"{message.published_at[11:23]}Z  {printable(received.topic):<32} {message.seq:>7}  ")
    match message:
        case Verdict():
            _judgement(line, message)
            line.append(f" {message.latency_ms.total:7.1f} ms")
            if message.frame is not None:
                line.append(f"  frame {message.frame.index}")
            for what, value in (("part", message.part_id), ("trigger", message.trigger_id)):
                if value is not None:
                    line.append(f"  {what} {printable(value)}")
        case Part():
            _judgement(line, message)
            line.append(f" {message.frames.total:4} frame(s)  {message.first_index} to {message.last_index}")
        case CameraStatus():
            line.append(f"{message.state:<9}", _COLOURS[message.state])
            line.append(f" {printable(message.reason or '')}")
        case Heartbeat():
            line.append(f"{message.state:<9}", _COLOURS[message.state])
            line.append(f" {len(message.topics)} topic(s), boot {printable(message.boot_id[:8])}")
    if received.recovered:
        line.append("  recovered", "dim")
    elif not isinstance(message, Heartbeat) and message.replayed:
        line.append("  replayed", "dim")
    line.rstrip()
    return line


def _judgement(line: Text, message: Verdict | Part) -> None:
    line.append(f"{message.verdict:<9}", _COLOURS[message.verdict])
    why = message.reason or ("empty" if message.verdict == "no_result" else "")
    label = "" if message.score is None else f"{printable(message.label or '')} {message.score:.3f}"
    line.append(f" {why:<12} {label:<22}")


def printable(text: str) -> str:
    """Nothing that came over the wire may steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
