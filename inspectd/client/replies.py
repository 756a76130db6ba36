"""The daemon's replies as lines for people. What is missing is left out, what is unknown passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inspectd.client.columns import printable

Reply = Mapping[str, Any]


def status_lines(reply: Reply) -> Iterator[str]:
    yield _line("state", _state(reply))
    yield _line("version", _text(reply.get("version")), f"boot {_text(reply.get('boot_id'))}")
    yield _line("config", _text(reply.get("config")), f"recipe {_text(reply.get('recipe')) or 'none'}")
    yield _line("journal", _state(_object(reply.get("journal")), why="why"))
    for camera in _objects(reply.get("cameras")):
        pending = camera.get("pending_triggers")
        waiting = f"{pending} trigger(s) under way" if pending else ""
        yield _line("camera", _text(camera.get("name")), _state(camera), _text(camera.get("trigger")), waiting)
        for roi in _objects(camera.get("rois")):
            yield _line("", f"  {_text(roi.get('name'))}", f"model {_text(roi.get('model'))}")
    yield from _models(reply)
    challenge = reply.get("challenge")
    yield _line("challenge", "none" if challenge is None else _challenged(_object(challenge)))


def recipe_lines(reply: Reply) -> Iterator[str]:
    yield _line("recipe", _text(reply.get("recipe")) or "none")
    yield _line("config", _text(reply.get("config")))
    yield from _models(reply)


def reload_lines(reply: Reply) -> Iterator[str]:
    yield _line("config", _text(reply.get("config")))
    for name, meaning in (("applied", "applied"), ("restart", "needs a restart")):
        keys = reply.get(name)
        if isinstance(keys, list) and keys:
            yield _line(meaning, ", ".join(_text(key) for key in keys))
    if not reply.get("applied") and not reply.get("restart"):
        yield _line("applied", "nothing has changed")


def challenge_lines(reply: Reply) -> Iterator[str]:
    for picture in _objects(reply.get("pictures")):
        where = f"{_text(picture.get('camera'))}/{_text(picture.get('roi'))}"
        expected, got = _text(picture.get("expect")), _text(picture.get("got"))
        label = _text(picture.get("label"))
        came = f"{got} ({label})" if label else got
        verdict = "ok" if picture.get("ok") else "WRONG"
        yield _line(verdict, _text(picture.get("file")), where, f"expected {expected}, got {came}")
    yield _line("challenge", _challenged(reply))


def _challenged(challenge: Reply) -> str:
    passed = challenge.get("passed")
    return "passed" if passed is True else "FAILED" if passed is False else "not yet run"


def _models(reply: Reply) -> Iterator[str]:
    models = reply.get("models")
    for model in models if isinstance(models, list) else []:
        if isinstance(model, dict):
            yield _line("model", *(_text(value) for value in model.values() if value is not None))
        else:
            yield _line("model", _text(model))


def _state(said: Reply, why: str = "reason") -> str:
    reason = said.get(why)
    return _text(said.get("state")) + (f": {_text(reason)}" if reason else "")


def _line(name: str, *values: str) -> str:
    return f"{name:<15} {'  '.join(value for value in values if value)}".rstrip()


def _text(value: Any) -> str:
    return "" if value is None else printable(str(value))


def _object(value: Any) -> Reply:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Reply]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
