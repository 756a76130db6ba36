"""The methods of the OPC UA server: what a call asks of inspectd, and how its answer comes back."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import structlog
from asyncua import ua

from inspectd.bridge import opcua_tree as tree
from inspectd.bridge.handshake import REPLY_TIMEOUT_S
from inspectd.bridge.line import Line
from inspectd.client import ControlRefused, ControlTimeout
from inspectd.errors import UsageError

log = structlog.get_logger(__name__)

Answer = Callable[..., Awaitable[Any]]
"""Called by asyncua with the object's node id and the arguments; returns the results, or a bad status."""


def trigger_of(line: Line, camera: str) -> Answer:
    """`Trigger` of one camera."""

    async def trigger(parent: ua.NodeId, *arguments: ua.Variant) -> Any:
        part_id, deadline_ms = _values(tree.TRIGGER, arguments)
        if not line.image.line(time.monotonic()).safe:
            return _refusal("fail_safe")
        accepted = await line.client.trigger(
            camera, part_id or None, deadline_ms=deadline_ms, timeout_s=REPLY_TIMEOUT_S
        )
        return (
            accepted.trigger_id,
            datetime.fromisoformat(accepted.accepted_at),
            datetime.fromisoformat(accepted.deadline_at),
        )

    return _answering(tree.TRIGGER, trigger)


def select_recipe_of(line: Line) -> Answer:
    """`SelectRecipe`. Also while nothing is safe: another recipe may be what helps."""

    async def select(parent: ua.NodeId, *arguments: ua.Variant) -> Any:
        (name,) = _values(tree.SELECT_RECIPE, arguments)
        reply = await line.client.recipe(name or None)
        return str(reply.get("recipe") or ""), str(reply.get("config") or "")

    return _answering(tree.SELECT_RECIPE, select)


def arguments_of(arguments: Sequence[tree.Argument]) -> list[ua.Argument]:
    """As a server describes them."""
    return [
        ua.Argument(
            Name=each.name,
            DataType=type_id(each.type),
            ValueRank=-1,
            ArrayDimensions=[],
            Description=ua.LocalizedText(each.meaning),
        )
        for each in arguments
    ]


def type_id(name: tree.UaType) -> ua.NodeId:
    return ua.NodeId(ua.Int32(ua.VariantType[name].value))


def bad_status(name: str) -> ua.StatusCode:
    return ua.StatusCode(getattr(ua.StatusCodes, name))


class _BadArgumentError(Exception):
    def __init__(self, status: str) -> None:
        self.status = bad_status(status)


def _answering(method: tree.Method, work: Answer) -> Answer:
    """A method as asyncua calls it: whatever goes wrong becomes a status code, and a line in the log."""

    async def answer(parent: ua.NodeId, *arguments: ua.Variant) -> Any:
        try:
            result = await work(parent, *arguments)
        except _BadArgumentError as err:
            return err.status
        except ControlRefused as err:
            log.warning("method_refused", method=method.name, code=err.code, why=err.message)
            return _refusal(err.code)
        except ControlTimeout as err:
            log.warning("method_unanswered", method=method.name, why=str(err))
            return _refusal("no_reply")
        except UsageError as err:
            log.warning("method_impossible", method=method.name, why=str(err))
            return _refusal("bad_request")
        if isinstance(result, ua.StatusCode):
            return result
        return [
            ua.Variant(value, ua.VariantType[each.type]) for each, value in zip(method.outputs, result, strict=True)
        ]

    return answer


def _values(method: tree.Method, arguments: Sequence[ua.Variant]) -> list[Any]:
    """The plain values of a call's arguments, of the types that the method has."""
    if len(arguments) < len(method.inputs):
        raise _BadArgumentError("BadArgumentsMissing")
    if len(arguments) > len(method.inputs):
        raise _BadArgumentError("BadTooManyArguments")
    values = []
    for expected, given in zip(method.inputs, arguments, strict=True):
        if given.VariantType is not ua.VariantType[expected.type] or isinstance(given.Value, list):
            raise _BadArgumentError("BadTypeMismatch")
        values.append(given.Value)
    return values


def _refusal(code: str) -> ua.StatusCode:
    return bad_status(tree.REFUSALS.get(code, "BadInternalError"))
