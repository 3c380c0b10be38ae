"""Independent formulas in float64 and numpy, and the inputs that several tests share."""

import numpy as np
import torch

from warploom.core.testing import random_normal

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FLOAT32_ERROR = 1e-5  # 84 roundings of float32, of sums of up to 16384 terms as of a few
SMALLEST_FLOAT32 = 2.0**-149
ADVERSARIAL_SCALES = (0.0, 1.0, 1e-3, 1e-40, 1e30, 3e-39, 1e-20, 7.0)


def elementwise(scale, shape, granularity):
    """A block scale ``[row_blocks, column_blocks]`` for every element of `shape`, in float64."""
    rows = torch.arange(shape[0], device=scale.device) // granularity[0]
    columns = torch.arange(shape[1], device=scale.device) // granularity[1]
    return scale.double()[rows][:, columns]


def block_scaled(a, b, a_scale, b_scale, granularity):
    gm, gn, gk = granularity
    left = a.double() * elementwise(a_scale, a.shape, (gm, gk))
    right = b.double() * elementwise(b_scale, b.shape, (gn, gk))
    return left @ right.T


def random_scales(shape, seed=0, adversarial=False):
    """Positive float32 scales: around one, or drawn from zero, subnormal, tiny and huge ones."""
    generator = torch.Generator().manual_seed(seed)
    if not adversarial:
        return torch.rand(shape, generator=generator) + 0.5
    values = torch.tensor(ADVERSARIAL_SCALES)
    return values[torch.randint(len(values), shape, generator=generator)]


def random_fp8(shape, dtype=E4M3, seed=0):
    """Normal values over much of the range, so that sums do not cancel to nothing."""
    return random_normal(shape, dtype, seed=seed, scale=4.0)


def fp8_values(dtype):
    """All finite non-negative values of an fp8 type, by code."""
    values = torch.arange(128, dtype=torch.uint8).view(dtype).float().numpy()
    return values[np.isfinite(values)].astype(np.float64)


def round_to_fp8(x, dtype):
    """Codes of the nearest fp8 values by search among all of them: ties to the even code, saturating, one NaN."""
    table = fp8_values(dtype)
    magnitude = np.minimum(np.abs(x.astype(np.float64)), table[-1])
    above = np.clip(np.searchsorted(table, magnitude), 1, len(table) - 1)
    below = above - 1
    distance_above, distance_below = table[above] - magnitude, magnitude - table[below]
    even_above = above % 2 == 0
    codes = np.where(
        (distance_above < distance_below) | ((distance_above == distance_below) & even_above), above, below
    )
    codes = codes | np.where(np.signbit(x), 0x80, 0)
    return np.where(np.isnan(x), 0x7F, codes).astype(np.uint8)


def quantize_block(block, dtype, eps, power_of_two=False):
    """Codes and scale of one block of values, in numpy float32."""
    x = block.float().numpy()
    limit = np.float32(torch.finfo(dtype).max)
    with np.errstate(all="ignore"):
        amax = np.float32(np.max(np.abs(x), initial=np.float32(0)))
        amax = amax if np.isnan(amax) else max(amax, np.float32(eps))
        scale = np.float32(amax / limit)
        inverse = np.float32(limit / amax)
        if power_of_two and np.isfinite(scale):
            scale = np.float32(2.0 ** np.ceil(np.log2(float(scale))))
            inverse = np.float32(1) / scale
        elif power_of_two:
            inverse = np.float32(1) / scale
        return round_to_fp8(x * inverse, dtype), scale


def product_bound(a, b):
    """How far a product of tensor cores may be from the exact one, as a share of the product of magnitudes.

    Of 16-bit operands sums are float32, cut rather than rounded: at most one unit of 2**-23 for each of K / 8 additions
    and a few more. Of 8-bit operands an instruction adds 32 products to what is there, all cut to 13 bits after the
    largest's first.
    """
    return 33 * 2.0**-13 if a.element_size() == 1 else max(a.shape[-1], 8) / 8 * 2.0**-22


def assert_product(actual, a, b, a_scale=None, b_scale=None, granularity=None, bias=None):
    """``actual == a @ b.T`` of float64, with scales of blocks, up to the tensor cores' sums and its own rounding."""
    left, right = a.double(), b.double()
    if a_scale is not None:
        gm, gn, gk = granularity
        left = left * elementwise(a_scale.to(a.device), a.shape, (gm, gk))
        right = right * elementwise(b_scale.to(b.device), b.shape, (gn, gk))
    exact = left @ right.T if bias is None else left @ right.T + bias.double()
    magnitudes = left.abs() @ right.abs().T
    bound = exact.abs() * torch.finfo(actual.dtype).eps + magnitudes * product_bound(a, b) + 1e-30
    wrong = ~((actual.double() - exact).abs() <= bound)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        shown = f"{int(wrong.sum())} of {wrong.numel()}, first at {first}: {actual[first]} for {exact[first]}"
        raise AssertionError(shown)


def silu_and_mul(x):
    """``silu(gate) * factor`` of a float tensor, and how far float32 arithmetic may be off; gates below -87 count as 0."""
    gate, factor = x.double().chunk(2, -1)
    silu = torch.where(gate < -87, 0.0, gate / (1 + torch.exp(-gate)))
    y = silu.float() * factor  # the smallest of all vanish
    return y, y.abs() * FLOAT32_ERROR + factor.abs() * SMALLEST_FLOAT32


def rmsnorm(x, weight, norm_eps=1e-6):
    """``x * rsqrt(mean(x ** 2) + norm_eps) * weight``, and how far float32 arithmetic may be off."""
    wide = x.double()
    squares = wide.square().mean(-1, keepdim=True)
    norm = torch.where(squares > torch.finfo(torch.float32).max / x.shape[-1], 0.0, torch.rsqrt(squares + norm_eps))
    y = wide * norm * weight.double()
    return y, y.abs() * FLOAT32_ERROR


def fp8_steps(values, dtype):
    """Distance between neighbouring fp8 values at each magnitude."""
    smallest = torch.finfo(dtype).tiny
    return torch.exp2(torch.log2(values.abs().clamp(min=smallest)).floor()) * torch.finfo(dtype).eps


def assert_quantized(q, scale, y, error, group_size=None, *, eps=1e-10, power_of_two=False):
    """``q[rows, columns]`` is `y` rounded once: scales follow from the largest magnitudes of groups of a row, and a value
    is off by half a step of fp8 and by what `y` was off by. Without a group size the scale was given.
    """
    rows, columns = y.shape
    y = y.float().double()  # what exceeds float32 is infinite
    error = torch.where(y.isfinite(), error, 0.0)
    scale = scale.double()
    if group_size is None:
        scale, group_size = scale.expand(rows, 1), columns
    else:
        exact, off = scales_of_groups(y, error, group_size, eps, q.dtype)
        assert scale.shape == exact.shape
        assert torch.equal(scale.isnan(), exact.isnan())
        assert torch.equal(scale.isinf(), exact.isinf())
        at, most = exact.isfinite(), (2 if power_of_two else 1)
        assert (scale[at] >= (exact - off)[at]).all()
        assert (scale[at] <= (most * (exact + off))[at]).all()
        assert not power_of_two or (torch.frexp(scale[at]).mantissa == 0.5).all()
    limit = torch.finfo(q.dtype).max
    scale = scale.repeat_interleave(group_size, 1)[:, :columns]
    ideal = (y / scale).clamp(-limit, limit)
    assert torch.equal(q.isnan(), ideal.isnan())
    allowed = fp8_steps(ideal, q.dtype) / 2 + error / scale + ideal.abs() * FLOAT32_ERROR
    assert not ((q.double() - ideal).abs() > allowed)[~ideal.isnan()].any()


def scales_of_groups(y, error, group_size, eps, dtype):
    """Scales ``[rows, groups]`` and how far they may be off."""
    padding = -y.shape[1] % group_size
    groups = (y.shape[1] + padding) // group_size
    amax, error = (
        torch.nn.functional.pad(x.abs(), (0, padding)).unflatten(1, (groups, group_size)).amax(-1) for x in (y, error)
    )
    exact = amax.clamp(min=eps) / torch.finfo(dtype).max
    return exact, exact * FLOAT32_ERROR + error / torch.finfo(dtype).max
