"""Attention states to merge, and what they merge to in float64."""

import math

import torch

from warploom.core.testing import assert_close, random_normal, random_strided

INF, NAN = math.inf, math.nan


def make_states(rows, states, heads, dim, dtype, *, device="cpu", strided=False, spread=4.0, seed=0):
    """Random values and log-sum-exps; a third of the states saw no key and hold NaN in place of values."""
    make = random_strided if strided else random_normal
    v = make((rows, states, heads, dim), dtype, seed=seed, device=device)
    s = make((rows, states, heads), torch.float32, seed=seed + 1, device=device)
    s.mul_(spread)
    unseen = random_normal((rows, states, heads), seed=seed + 2, device=device) > 0.44
    s.masked_fill_(unseen, -INF)
    v.masked_fill_(unseen[..., None], NAN)
    return v, s


def expected_merge(v, s, base=2.0):
    """Merge one row, one head at a time, from the definition; log-sum-exps are to `base`."""
    rows, _, heads, dim = v.shape
    values, totals = torch.zeros(rows, heads, dim, dtype=torch.float64), torch.full((rows, heads), -INF).double()
    v, s = v.double().cpu(), s.double().cpu() * math.log(base)
    for row in range(rows):
        for head in range(heads):
            seen = s[row, :, head] != -INF
            if not bool(seen.any()):
                continue
            lse, value = s[row, seen, head], v[row, seen, head]
            if bool((lse.isnan() | (lse == INF)).any()):
                values[row, head], totals[row, head] = NAN, NAN
                continue
            totals[row, head] = lse.logsumexp(0) / math.log(base)
            values[row, head] = lse.softmax(0) @ value
    return values, totals


def assert_merged(result, v, s, base=2.0, rows=None):
    """Compare values and log-sum-exps with the oracle, on some rows if there are many."""
    chosen = slice(None) if rows is None else rows
    values, totals = expected_merge(v[chosen], s[chosen], base)
    assert_close(result[0][chosen], values, what="values")
    assert_close(result[1][chosen], totals, what="log-sum-exps", atol=2e-5)
