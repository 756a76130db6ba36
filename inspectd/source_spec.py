"""A camera's `source`: taken apart, completed with credentials, and shown without them."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field

SourceKind = Literal["rtsp", "usb", "file", "conveyor"]


class SourceSpec(BaseModel):
    """A camera's `source`, taken apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: SourceKind
    location: str
    """URL for rtsp, device path or index for usb, path for file, empty for conveyor."""
    options: dict[str, str] = Field(default_factory=dict)

    def flag(self, name: str) -> bool:
        return self.options.get(name, "0") in ("1", "true", "yes")

    def number(self, name: str, default: float) -> float:
        return float(self.options.get(name, default))


_SOURCE_OPTIONS: dict[SourceKind, tuple[str, ...]] = {
    "rtsp": (),
    "usb": (),
    "file": ("loop", "realtime"),
    "conveyor": ("width", "height", "fps", "seed", "frames", "realtime", "defects"),
}


def parse_source(source: str) -> SourceSpec:
    """Take a `source` apart.

    Raises:
        ValueError: no known kind, nothing behind it, or an unknown or malformed option.
    """
    if re.match(r"rtsps?://", source):
        try:
            parts = urlsplit(source)
            port = parts.port  # a property that raises on nonsense
        except ValueError:
            raise ValueError(f"{redact(source)}: not a URL; expected rtsp://HOST[:PORT]/PATH") from None
        if not parts.hostname or port == 0:
            raise ValueError(f"{redact(source)}: names no host; expected rtsp://HOST[:PORT]/PATH")
        return SourceSpec(kind="rtsp", location=source)
    scheme, colon, rest = source.partition(":")
    if not colon or scheme not in ("usb", "file", "conveyor"):
        raise ValueError(f"{redact(source)}: expected rtsp://…, usb:DEVICE, file:PATH or conveyor:")
    kind: SourceKind = scheme  # type: ignore[assignment]  # narrowed by the line above
    if kind == "usb":
        if not rest.isdigit() and not rest.startswith("/dev/"):
            raise ValueError(f"{source}: expected usb:0 or usb:/dev/v4l/by-id/…")
        return SourceSpec(kind="usb", location=rest)
    location, _, query = rest.partition("?")
    if kind == "file" and not location:
        raise ValueError(f"{source}: expected file:PATH")
    if kind == "conveyor" and location:
        raise ValueError(f"{source}: expected conveyor:[?width=W&height=H&fps=F&seed=N]")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = _SOURCE_OPTIONS[kind]
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{source}: unknown option {name!r}; known: {', '.join(known)}")
        if not re.fullmatch(r"\d+(\.\d+)?|true|false|yes|no", value):
            raise ValueError(f"{source}: option {name}={value!r} is no number")
    return SourceSpec(kind=kind, location=location, options=options)


def with_credentials(url: str, credentials: tuple[str, str] | None) -> str:
    """The URL with user and password put in (percent-encoded), replacing any that it had."""
    if credentials is None:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user, password = (quote(part, safe="") for part in credentials)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{host}"))


def redact(text: str) -> str:
    """The text with the credentials of every URL in it replaced by `***`."""
    # Up to the last @ that can belong to them: passwords with an unescaped @ or / are common.
    return re.sub(r"(?<=://)[^\s/]*@|(?<=://)[^\s@/]*:\S*@", "***@", text)
