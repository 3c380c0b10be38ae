"""Oracles of the sampling tests, written from the definitions in numpy and exact fractions, not from the code."""

import math
from fractions import Fraction

import numpy as np
import torch

INF, NAN = math.inf, math.nan

# Logits, temperature, and what the softmax is stated to be.
ODD_ROWS = [
    ([-INF, 0.0, 0.0], 1.0, [0.0, 0.5, 0.5]),
    ([-INF, -INF, -INF], 1.0, [0.0, 0.0, 0.0]),
    ([-INF, -INF, -INF], 0.0, [0.0, 0.0, 0.0]),
    ([NAN, 0.0, 1.0], 1.0, [NAN] * 3),
    ([NAN, -INF, -INF], 1.0, [NAN] * 3),
    ([INF, 0.0, 1.0], 1.0, [NAN] * 3),
    ([1.0, 3.0, 3.0], 0.0, [0.0, 0.5, 0.5]),
    ([1.0, 3.0, 3.0], -0.0, [0.0, 0.5, 0.5]),
    ([1.0, 3.0, -INF], INF, [0.5, 0.5, 0.0]),
    ([1.0, 2.0, 3.0], -1.0, [NAN] * 3),
    ([1.0, 2.0, 3.0], NAN, [NAN] * 3),
    ([-INF, -INF, -INF], NAN, [NAN] * 3),
    ([1e38, 3e38, -3e38], 1e-10, [0.0, 1.0, 0.0]),
    ([88.0, 88.0, -88.0], 1e-30, [0.5, 0.5, 0.0]),
]


def softmax(logits, temperature=1.0):
    """Float64 softmax of finite rows by numpy; temperature is a number or one a row."""
    x = logits.to(torch.float64).numpy() / np.asarray(temperature, dtype=np.float64).reshape(-1, 1)
    weights = np.exp(x - x.max(axis=1, keepdims=True))
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def kept_by_top_k(row, k):
    """Tokens of a list of weights, none of which k others exceed."""
    if not 1 <= k <= len(row):
        return set(range(len(row)))
    return {i for i, x in enumerate(row) if sum(y > x for y in row) < k}


def kept_by_top_p(row, p):
    """Tokens above which there is less than the share p, in exact arithmetic; p is first rounded to float32."""
    p = Fraction(float(np.float32(p)))
    if p >= 1:
        return set(range(len(row)))
    exact = [Fraction(x) for x in row]
    total = sum(exact)
    inside = {i for i, x in enumerate(exact) if sum(y for y in exact if y > x) < p * total}
    return inside or {i for i, x in enumerate(exact) if x == max(exact)}


def kept_by_min_p(row, p):
    """Tokens at or above the float32 product of p and the largest weight."""
    threshold = np.float32(max(row)) * np.float32(min(p, 1.0))
    return {i for i, x in enumerate(row) if np.float32(x) >= threshold}


def restrict(row, kept):
    """Weights of the kept tokens over their sum."""
    total = sum(row[i] for i in kept)
    return [x / total if i in kept and total else 0.0 for i, x in enumerate(row)]


def chi_square_fits(counts, probs, alpha=1e-4):
    """Whether counts of draws fit probabilities; tokens of probability 0 must not have been drawn.

    The quantile is Wilson and Hilferty's approximation.
    """
    counts, probs = np.asarray(counts, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    probs = probs / probs.sum()
    if counts[probs == 0].sum():
        return False
    counts, probs = counts[probs > 0], probs[probs > 0]
    expected = counts.sum() * probs
    # Rare tokens together, so that every cell is expected to hold five or more.
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    freedom = len(counts) - 1
    if freedom == 0:
        return True
    statistic = ((counts - expected) ** 2 / expected).sum()
    z = {1e-4: 3.719}[alpha]
    quantile = freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic <= quantile


def histogram(tokens, vocab):
    return torch.bincount(tokens.to(torch.int64).cpu(), minlength=vocab).numpy()
