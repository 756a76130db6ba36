"""The page that an evaluation ends in: one HTML file that needs nothing else, for the screen and for paper.

A page is a list of sections, a section a list of parts; what is said in them is another module's matter.
All text is escaped: class names and file names are what somebody typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

Mood = Literal["good", "bad", "unsure", "plain"]


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the answer: large, with what it is, and what may be concluded from it."""

    figure: str
    label: str
    note: str
    mood: Mood = "plain"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that is more than its text: `tint` from 0 to 1 colours its ground, by its mood."""

    text: str
    tint: float = 0.0
    mood: Mood = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a header. All columns but the first `words` hold figures, which are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1
    caption: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Plot:
    """An <svg> element and what it shows."""

    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Plots:
    """Plots beside each other where there is room."""

    plots: Sequence[Plot]
    kind: Literal["plots"] = "plots"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a gallery: data URIs with their captions, and what there is to say."""

    images: Sequence[tuple[str, str]]  # (data URI, caption)
    title: str
    lines: Sequence[str]
    mood: Mood = "plain"


@dataclass(frozen=True, slots=True)
class Gallery:
    pictures: Sequence[Picture]
    kind: Literal["gallery"] = "gallery"


@dataclass(frozen=True, slots=True)
class Code:
    """Something to copy."""

    text: str
    kind: Literal["code"] = "code"


@dataclass(frozen=True, slots=True)
class Items:
    """A list; long ones are folded behind their title."""

    title: str
    items: Sequence[str]
    kind: Literal["items"] = "items"


Part = Text | Table | Plots | Gallery | Code | Items


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what its parts answer, and the parts."""

    id: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Page:
    """The answer first: tiles; then what speaks against it: warnings, (text, mood); then the sections.

    Grave warnings, those of the mood "bad", stand above the answer. `to_sign`: the lines at the end, for a pen.
    """

    title: str
    subtitle: str
    answer: str
    tiles: Sequence[Tile]
    warnings: Sequence[tuple[str, Mood]]
    sections: Sequence[Section]
    footer: str
    to_sign: Sequence[str] = ("Released for production: yes / no", "Name", "Date", "Signature")


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("inspectd.workshop.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page)
