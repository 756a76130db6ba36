"""Figures in words, the same on the page and on the terminal."""

from __future__ import annotations

import math

from inspectd.workshop.evaluation.figures import Share

SPLIT_WORDS = {"test": "test data", "val": "validation data: not a test", "all": "all pictures of the folder"}


def percent(share: float) -> str:
    """A share in percent, on one line."""
    return f"{100 * share:.1f}\u00a0%"


def count(share: Share) -> str:
    return f"{share.count} of {share.of}" if share.of else "none"


def interval(share: Share) -> str:
    if share.share is None or share.low is None or share.high is None:
        return "no pictures"
    return f"{percent(share.share)}, 95\u00a0% interval {100 * share.low:.1f} to {100 * share.high:.1f}"


def count_percent(share: Share) -> str:
    return f"{share.count} of {share.of} ({percent(share.share)})" if share.share is not None else "none"


def share_only(share: Share) -> str:
    return "no pictures" if share.share is None else percent(share.share)


def agreement(share: Share | None) -> str:
    return "" if share is None else count(share)


def four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def above(bound: float) -> str:
    """A bound in percent, rounded so that it still is one."""
    return percent(math.ceil(bound * 1000) / 1000)
