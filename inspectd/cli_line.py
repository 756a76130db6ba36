"""The commands that talk to a running daemon: tail, trigger, replay, status, recipe, reload, challenge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from inspectd.errors import UsageError

if TYPE_CHECKING:
    from inspectd.client import Keys
    from inspectd.client.commands import Commands

VerdictsArgument = Annotated[str, typer.Argument(help="The daemon's publish.bind.")]
VerdictsOption = Annotated[str, typer.Option("--verdicts", metavar="ENDPOINT", help="The daemon's publish.bind.")]
ControlOption = Annotated[str, typer.Option("--control", metavar="ENDPOINT", help="The daemon's control.bind.")]
ServerKey = Annotated[
    Path | None, typer.Option("--server-key", metavar="FILE", help="The daemon's public certificate (*.key).")
]
ClientKey = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Your own certificate (*.key_secret); needs --server-key.")
]
Json = Annotated[bool, typer.Option("--json", help="The reply as JSON.")]

T = TypeVar("T")

_VERDICTS = "tcp://127.0.0.1:5556"  # as client.connection has them, which is not imported for --help
_CONTROL = "tcp://127.0.0.1:5557"


def tail(
    endpoint: VerdictsArgument = _VERDICTS,
    control: ControlOption = _CONTROL,
    topic: Annotated[list[str] | None, typer.Option("--topic", help="Only topics that begin so; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The messages as JSON lines.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many messages.")] = None,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Print the verdict stream; fetches what was missed, and says so when heartbeats stop or messages are lost."""
    from inspectd.client.tail import run_tail

    keys = _keys(server_key, key)
    sys.exit(run_tail(endpoint, control=control, keys=keys, topics=topic or (), as_json=as_json, count=count))


def trigger(
    camera: Annotated[str, typer.Argument(metavar="CAMERA", help="A camera with trigger = 'command'.")],
    part: Annotated[str | None, typer.Option("--part", metavar="ID", help="Echoed in the verdicts as part_id.")] = None,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="MS", help="The verdicts come within so many milliseconds.")
    ] = 1000,
    wait: Annotated[
        bool, typer.Option("--wait", help="Print the verdicts too; exit code 0 only if every region passed.")
    ] = False,
    control: ControlOption = _CONTROL,
    verdicts: VerdictsOption = _VERDICTS,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Have the next part inspected; prints the trigger_id."""
    keys = _keys(server_key, key)
    if wait:
        from inspectd.client.inspect import inspect_part

        passed = inspect_part(camera, part, deadline, verdicts, control, keys, print)
        sys.exit(0 if passed else 1)
    print(_ask(control, keys, lambda line: line.trigger(camera, part, deadline_ms=deadline)).trigger_id)


def replay(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="For example verdict/line1/part/.")],
    from_seq: Annotated[int, typer.Option("--from", metavar="SEQ", min=1, help="The first number.")] = 1,
    boot: Annotated[str | None, typer.Option("--boot", metavar="ID", help="An earlier boot of the daemon.")] = None,
    control: ControlOption = _CONTROL,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Print what was published on a topic from the journal, as JSON lines; says on stderr what is missing."""

    def pages(line: Commands) -> None:
        seq: int | None = from_seq
        while seq is not None:
            page = line.replay(topic, seq, boot)
            for message in page.messages:
                print(json.dumps(message, ensure_ascii=False, separators=(",", ":")))
            for first, last in page.missing:
                print(f"inspectd: not in the journal: seq {first} to {last}", file=sys.stderr)
            if page.next_boot_id is not None:
                print(f"inspectd: goes on in boot {page.next_boot_id}", file=sys.stderr)
            seq = page.next_seq if page.next_seq is not None and page.next_seq > seq else None

    _ask(control, _keys(server_key, key), pages)


def status(
    control: ControlOption = _CONTROL,
    as_json: Json = False,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Print the daemon's state: cameras, models, recipe, journal, last challenge."""
    _print(_ask(control, _keys(server_key, key), lambda line: line.status()), as_json, "status_lines")


def recipe(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of [recipes.NAME].")] = None,
    none: Annotated[bool, typer.Option("--none", help="What stands outside the recipes.")] = False,
    control: ControlOption = _CONTROL,
    as_json: Json = False,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Switch to a recipe; returns once it is in force, or the old one has stayed."""
    if (name is None) is not none:
        raise UsageError("recipe: give the NAME of a recipe, or --none")
    _print(_ask(control, _keys(server_key, key), lambda line: line.recipe(name)), as_json, "recipe_lines")


def reload(
    control: ControlOption = _CONTROL,
    as_json: Json = False,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Have the configuration file read again; prints what was applied and what needs a restart."""
    _print(_ask(control, _keys(server_key, key), lambda line: line.reload()), as_json, "reload_lines")


def challenge(
    control: ControlOption = _CONTROL,
    as_json: Json = False,
    server_key: ServerKey = None,
    key: ClientKey = None,
) -> None:
    """Have the golden pictures judged now; exit code 1 if one came out wrong."""
    reply = _ask(control, _keys(server_key, key), lambda line: line.challenge())
    _print(reply, as_json, "challenge_lines")
    sys.exit(0 if reply.get("passed") is True else 1)


COMMANDS = (tail, trigger, replay, status, recipe, reload, challenge)


def _ask(control: str, keys: Keys | None, question: Callable[[Commands], T]) -> T:
    from inspectd.client import Control

    with Control(control, keys=keys) as line:
        return question(line)


def _print(reply: Mapping[str, Any], as_json: bool, lines: str) -> None:
    from inspectd.client import replies

    for line in [json.dumps(reply, ensure_ascii=False)] if as_json else getattr(replies, lines)(reply):
        print(line)


def _keys(server: Path | None, own: Path | None) -> Keys | None:
    if server is None and own is None:
        return None
    if server is None or own is None:
        raise UsageError("--server-key and --key go together: one is given, the other is missing")
    from inspectd.client import Keys

    return Keys(server, own)
