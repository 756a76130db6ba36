"""Which licences may stand beside Apache-2.0, for audit.py."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

COMPATIBLE = re.compile(
    r"Apache-2\.0|MIT|MIT-0|MIT-CMU|BSD-[123]-Clause|0BSD|BSL-1\.0|ISC|PSF-2\.0|Python-2\.0|Python-2\.0\.1|CNRI-Python"
    r"|MPL-2\.0|Zlib|Unlicense|CC0-1\.0|HPND|LGPL-(2\.0|2\.1|3\.0)(-only|-or-later)?"
)
"""SPDX's names of what may be installed beside a program under Apache-2.0. LGPL and MPL: as libraries of their own,
which wheels are."""
COMPATIBLE_CLASSIFIERS = re.compile(
    r"Apache Software License|MIT License|MIT No Attribution License \(MIT-0\)|BSD License|ISC License \(ISCL\)"
    r"|Python Software Foundation License|Mozilla Public License 2\.0 \(MPL 2\.0\)|zlib/libpng License"
    r"|The Unlicense \(Unlicense\)|CC0 1\.0 Universal \(CC0 1\.0\) Public Domain Dedication"
    r"|Historical Permission Notice and Disclaimer \(HPND\)|GNU Lesser General Public License v[23].*"
)
"""The same as the package index names them."""


@dataclass(frozen=True)
class Licence:
    """What a package states: an expression of SPDX, or before there were those a text and classifiers."""

    expression: str | None
    text: str | None
    classifiers: list[str]

    @property
    def is_compatible(self) -> bool:
        """By the expression, else by every classifier, else by the text where that is an expression. In doubt not."""
        if not self.expression and self._named:
            return all(COMPATIBLE_CLASSIFIERS.fullmatch(each) for each in self._named)
        try:
            stated = canonicalize_license_expression(self.expression or self.text or "")
        except InvalidLicenseExpression:
            return False
        return _one_of(deque(re.findall(r"[()]|[^\s()]+", stated)))

    def __str__(self) -> str:
        first_line = (self.text or "").strip().partition("\n")[0][:100]
        return self.expression or ", ".join(self._named) or first_line or "none is stated"

    @property
    def _named(self) -> list[str]:
        named = [each.split(" :: ") for each in self.classifiers if each.startswith("License :: ")]
        return [parts[-1] for parts in named if parts[1:] not in (["OSI Approved"], ["DFSG approved"])]


def _one_of(words: deque[str]) -> bool:
    """What stands up to a closing bracket or the end: one side of each OR must do. AND binds before OR."""
    compatible = _all_of(words)
    while words and words[0] == "OR":
        words.popleft()
        compatible = _all_of(words) or compatible
    return compatible


def _all_of(words: deque[str]) -> bool:
    compatible = _single(words)
    while words and words[0] == "AND":
        words.popleft()
        compatible = _single(words) and compatible
    return compatible


def _single(words: deque[str]) -> bool:
    word = words.popleft()
    if word == "(":
        compatible = _one_of(words)
        words.popleft()
        return compatible
    if words and words[0] == "WITH":  # an exception only allows more
        words.popleft()
        words.popleft()
    return COMPATIBLE.fullmatch(word.removesuffix("+")) is not None
