"""Bounds of the histograms of durations."""

SECONDS_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025),
    *(0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.033, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds in seconds: crops take tenths of a millisecond, a stalled engine seconds.

Between 5 and 50 ms, where a line at 20 to 200 frames a second decides, neighbours differ by at most a
half, so a quantile is off by less than that; 0.033 is one frame at 30 fps, so the share of verdicts
within a frame time is exact. Ten seconds is far beyond any `max_age_ms` that makes sense on a line.
"""
