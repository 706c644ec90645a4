"""How far apart points of a sphere can be at best: Levenshtein's bound."""

from __future__ import annotations

import math


def least_largest_cosine(points: int, dimension: int) -> float:
    """The least value that the largest cosine of so many points in so many dimensions can have, by Levenshtein's bound
    (1979). That of the simplex and Rankin's are its first two cases; no arrangement does better, and few reach it.

    Args:
        points: at least 2.
        dimension: at least 3.
    """
    m, low = 1, -1.0
    while points > (most := _points_of_design(m + 1, dimension)):
        low = _first_at_least(most, m, dimension, low)
        m += 1
    return _first_at_least(points, m, dimension, low)


def _points_of_design(strength: int, n: int) -> int:
    """The least points of a spherical design (Delsarte, Goethals, Seidel, 1977): where a case of the bound ends."""
    e, odd = divmod(strength, 2)
    return 2 * math.comb(n + e - 1, e) if odd else math.comb(n + e - 1, e) + math.comb(n + e - 2, e - 1)


def _first_at_least(points: int, m: int, n: int, low: float) -> float:
    """The cosine, from ``low`` on, at which the m-th case of the bound allows so many points: it rises up to a pole."""
    high = 1.0
    for _ in range(100):
        middle = (low + high) / 2
        allowed = _allowed(m, n, middle)
        low, high = (low, middle) if allowed is None or allowed >= points else (middle, high)
    return high


def _allowed(m: int, n: int, s: float) -> float | None:
    """The points that the m-th case of the bound allows with cosines up to ``s``; None beyond its pole."""
    k, even = m // 2 + m % 2, m % 2 == 0
    p = _gegenbauer(k + 1, n, s)
    below, above = (p[k], p[k + 1]) if even else (p[k - 1], p[k])
    divisor = below + above if even else above
    if divisor >= 0:
        return None
    share = (below - above) / ((1 - s) * divisor) * (1 + s if even else 1)
    if even:
        return math.comb(k + n - 2, k) * ((2 * k + n - 1) / (n - 1) - share)
    return math.comb(k + n - 3, k - 1) * ((2 * k + n - 3) / (n - 1) - share)


def _gegenbauer(degree: int, n: int, s: float) -> list[float]:
    """At ``s``, the polynomials of the sphere in n dimensions up to that degree, each 1 at 1."""
    p = [1.0, s]
    for k in range(1, degree):
        p.append(((2 * k + n - 2) * s * p[k] - k * p[k - 1]) / (k + n - 2))
    return p
