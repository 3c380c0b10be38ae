"""Variants say what they do twice, as an expression for kernels and as torch functions; both must mean the same."""

import math
from types import SimpleNamespace

import pytest
import torch

from warploom.attention import AttentionVariant, single_prefill_with_kv_cache
from warploom.attention.variants import BUILTIN_VARIANTS, LogitsContext, variant_of
from warploom.attention.variants.alibi import default_slopes
from warploom.core.errors import ArgumentError, PlanError

HEADS, GROUP, QO_LEN, KV_LEN, MASK_START = 6, 3, 3, 7, 5

# Values for every tensor and scalar that a built-in variant names; a new variant with new names adds them here.
VALUES = {
    "alibi_slopes": torch.tensor(default_slopes(HEADS)),
    "soft_cap": 1.5,
    "inverse_soft_cap": 1 / 1.5,
    "window_left": 2,
    "custom_mask": torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.5,
    "packed_custom_mask": torch.randint(0, 256, (9,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "mask_start": MASK_START,
}
C_FUNCTIONS = {"tanh_approx": math.tanh, "expf": math.exp, "fabsf": abs, "abs": abs, "min": min, "max": max}


def evaluated(expression, context, head, row, key, **more):
    """A CUDA expression at one point. The built-in ones are Python expressions too."""
    names = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in VALUES.items()}
    place = {
        "batch_idx": context.batch_idx, "qo_len": QO_LEN, "kv_len": KV_LEN, "qo_idx": row, "kv_idx": key,
        "qo_pos": row + KV_LEN - QO_LEN, "qo_head_idx": head, "kv_head_idx": head // GROUP,
    }  # fmt: skip
    return eval(expression, {"__builtins__": {}}, {**C_FUNCTIONS, **names, **place, **more})


@pytest.mark.parametrize("variant", BUILTIN_VARIANTS, ids=lambda v: v.name)
def test_expressions_mean_what_the_reference_does(variant):
    context = LogitsContext(0, range(QO_LEN), QO_LEN, KV_LEN, HEADS, GROUP, torch.device("cpu"))
    at = context.with_names({name: VALUES[name] for name in (*variant.tensors, *variant.scalars) if name in VALUES})
    logits = torch.randn(HEADS, QO_LEN, KV_LEN, generator=torch.Generator().manual_seed(1))
    points = [(h, i, j) for h in range(HEADS) for i in range(QO_LEN) for j in range(KV_LEN)]
    if variant.logits is not None:
        found = variant.reference_logits(logits, at)
        for h, i, j in points:
            expected = evaluated(variant.logits, context, h, i, j, logits=logits[h, i, j].item())
            assert found[h, i, j].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if variant.mask is not None:
        found = variant.reference_mask(at).expand(HEADS, QO_LEN, KV_LEN)
        for h, i, j in points:
            assert bool(found[h, i, j]) == bool(evaluated(variant.mask, context, h, i, j))


def test_names_of_built_in_variants_are_unique():
    names = [variant.name for variant in BUILTIN_VARIANTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("heads", [1, 6, 8, 12])
def test_default_slopes(heads):
    """Decreasing from below 1 for powers of two; for others the first ones are those of the power below."""
    slopes = default_slopes(heads)
    whole = 1 << (heads.bit_length() - 1)
    assert len(slopes) == len(set(slopes)) == heads
    assert slopes[:whole] == pytest.approx([2 ** (-8 * (i + 1) / whole) for i in range(whole)])
    assert slopes[whole:] == pytest.approx(
        [2 ** (-8 * (i + 1) / (2 * whole)) for i in range(0, 2 * (heads - whole), 2)]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "two words"}, "C identifier"),
        ({"name": "kv_idx"}, "reserved"),
        ({"tensors": {"logits": torch.float32}}, "reserved"),
        ({"scalars": {"slope": str}}, "float or int"),
        ({"mask": "kv_idx > 0"}, "reference_mask"),
        ({"reference_logits": lambda logits, at: logits}, "reference_logits"),
    ],
)
def test_bad_declarations(change, message):
    with pytest.raises(ArgumentError, match=message):
        AttentionVariant(**{"name": "mine", **change})


def test_arguments_are_bound_in_order():
    variant = AttentionVariant(name="mine", tensors={"bias": torch.float32}, scalars={"slope": float, "first": int})
    tensors, scalars = variant.bind("op", (torch.zeros(2), 0.5, 3))
    named = SimpleNamespace(**variant.named(tensors, scalars))
    assert named.bias.shape == (2,)
    assert (named.slope, named.first, type(named.first)) == (0.5, 3, int)
    with pytest.raises(ArgumentError, match="bias, slope, first"):
        variant.bind("op", (torch.zeros(2),))
    with pytest.raises(ArgumentError, match="float32"):
        variant.bind("op", (torch.zeros(2).half(), 0.5, 3))


def test_a_variant_that_is_gone():
    handle = AttentionVariant(name="mine").handle
    with pytest.raises(PlanError, match=r"variant .* is gone"):
        variant_of(handle)


def test_variants_combine():
    """A user's mask comes on top of the built-in ones."""
    odd = AttentionVariant(name="odd_keys", mask="kv_idx % 2 == 1", reference_mask=lambda at: at.kv_idx % 2 == 1)
    q, k, v = torch.randn(4, 2, 8), torch.randn(9, 1, 8), torch.randn(9, 1, 8)
    got = single_prefill_with_kv_cache(q, k, v, causal=True, window_left=4, variant=odd)
    at, to = torch.arange(5, 9)[:, None], torch.arange(9)[None]
    mask = (to <= at) & (to >= at - 4) & (to % 2 == 1)
    torch.testing.assert_close(got, single_prefill_with_kv_cache(q, k, v, custom_mask=mask))
