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


def philox(block, row, seed, offset):
    """The four words of a counter block, by Python's integers."""
    c = [block, row, offset % 2**32, offset % 2**64 >> 32]
    k = [seed % 2**32, seed % 2**64 >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def exponential(word):
    return -math.log1p(-(word + 0.5) / 2**32)


def arrivals(weights, row, seed, offset=0):
    """When tokens arrive, written from the statement: weights is a list, the result a dictionary of the positive ones."""

    def quad_number(quad):
        return exponential(philox(quad // 128 * 32 + quad % 32, row, seed, offset)[quad // 32 % 4])

    def token_number(token):
        return exponential(philox(2**30 + token // 4, row, seed, offset)[token % 4])

    times = {}
    for quad in range((len(weights) + 3) // 4):
        tokens = [t for t in range(4 * quad, min(4 * quad + 4, len(weights))) if weights[t] > 0]
        if tokens:
            first = quad_number(quad) / sum(weights[t] for t in tokens)
            heat = {t: token_number(t) / weights[t] for t in tokens}
            times |= {t: first + (heat[t] - min(heat.values())) for t in tokens}
    return times


def race(weights, row, seed, offset=0, finish=None):
    """The first token to arrive, of those that may win."""
    times = arrivals(weights, row, seed, offset)
    return min(times if finish is None else times.keys() & finish, key=lambda t: (times[t], t))


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
