"""Does it grow? Slopes of what was sampled, how sure they are, and what "zero within noise" means.

Samples a second apart are anything but independent: memory moves in steps, a journal in teeth. So the time after the
warm-up is cut into `BLOCKS` blocks, each is represented by its median (which a fault or a storm in it does not move),
and a straight line is fitted to these by least squares; its standard error comes from their residuals. Something grows
when

- the confidence interval of the slope at `CONFIDENCE` lies above zero, over the whole time and in its second half
  too: a leak goes on, while a pool that a rare fault has filled for good is one step; and
- the slope is above a bound per day, which is what so short a time can tell from nothing.

Everything else is zero within noise. What shrinks breaks no promise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BLOCKS = 24
CONFIDENCE = 0.99
DAY_S = 86400.0
_LEAST_BLOCKS = 4


@dataclass(frozen=True)
class Slope:
    """Per day, with its standard error and its confidence interval."""

    value: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """Of one quantity, in its own unit."""

    name: str
    unit: str
    first: float
    """The median of the first block after the warm-up."""
    last: float
    largest: float
    slope: Slope
    late: Slope
    """Of the second half."""
    bound: float

    @property
    def zero(self) -> bool:
        """Whether it is zero within noise, or shrinks."""
        return self.slope.low <= 0 or self.late.low <= 0 or self.slope.value <= self.bound


def trend(
    name: str, unit: str, times_s: Sequence[float], values: Sequence[float], *, bound: float, since_s: float
) -> Trend | None:
    """The trend of `values` at `times_s` from `since_s` on, where the warm-up ends; None: too few samples.

    `bound`: so much growth a day cannot be told from nothing.
    """
    times, measured = np.asarray(times_s, float), np.asarray(values, float)
    times, measured = times[times >= since_s], measured[times >= since_s]
    blocks = min(BLOCKS, len(times) // 3)
    if blocks < 2 * _LEAST_BLOCKS:
        return None
    number = np.minimum((times - times[0]) / (times[-1] - times[0]) * blocks, blocks - 1).astype(int)
    present = np.unique(number)
    if len(present) < 2 * _LEAST_BLOCKS:
        return None
    x = np.array([np.mean(times[number == block]) for block in present]) / DAY_S
    y = np.array([np.median(measured[number == block]) for block in present])
    half = len(x) // 2
    return Trend(
        name=name,
        unit=unit,
        first=float(y[0]),
        last=float(y[-1]),
        largest=float(measured.max()),
        slope=_slope(x, y),
        late=_slope(x[half:], y[half:]),
        bound=bound,
    )


def _slope(x: np.ndarray, y: np.ndarray) -> Slope:
    if np.ptp(y) == 0:
        return Slope(0.0, 0.0, 0.0, 0.0)
    fitted = stats.linregress(x, y)
    wide = stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - 2) * fitted.stderr
    return Slope(*(float(v) for v in (fitted.slope, fitted.stderr, fitted.slope - wide, fitted.slope + wide)))
