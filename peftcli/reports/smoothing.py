"""Curves made readable: an exponential mean beside the raw values, and fewer points where a screen shows no more."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.reports.series import Point

MAX_POINTS = 600


def smooth(points: Sequence[Point]) -> list[Point]:
    """A mean of neighbours on both sides, so that the smooth curve does not lag after a falling one."""
    if len(points) < 3:
        return list(points)
    before = running_mean(points)
    mirrored = running_mean([(-step, value) for step, value in reversed(points)])
    after = [(-step, value) for step, value in reversed(mirrored)]
    return [(step, (left + right) / 2) for (step, left), (_, right) in zip(before, after, strict=True)]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Exponential mean of a point and those before it, with bias correction (arXiv:1412.6980, section 3).

    A value fades to 1/e over a fortieth of the curve; uneven steps weigh by their distance.
    """
    if not points:
        return []
    # a fortieth: enough to see the course, and still the steps of a schedule
    span = max(1.0, (points[-1][0] - points[0][0]) / 40)
    smoothed: list[Point] = []
    mean = weight = 0.0
    # one step before the first, so that the first value weighs as much as any
    previous = points[0][0] - 1
    for step, value in points:
        # 1/e to the power of the distance, in spans
        keep = 0.36787944117144233 ** ((step - previous) / span)
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed.append((step, mean / weight))
        previous = step
    return smoothed


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points; of each stretch the lowest and the highest stay, so that no spike vanishes."""
    if len(points) <= limit:
        return list(points)
    # two points a stretch, so half as many stretches
    buckets = max(1, limit // 2)
    kept: list[Point] = []
    for bucket in range(buckets):
        stretch = points[bucket * len(points) // buckets : (bucket + 1) * len(points) // buckets]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    # ends of the curve stay whatever they are: where it began and ended is what is read off
    if kept[0] != points[0]:
        kept.insert(0, points[0])
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept
