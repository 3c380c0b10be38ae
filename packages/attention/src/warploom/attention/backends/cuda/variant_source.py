"""The C++ of a plan's variants, from their expressions: only what the plan uses is compiled."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from warploom.attention.plan import AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.variants import BUILTIN_VARIANTS, AttentionVariant, BuiltinVariant
from warploom.attention.variants.causal import CAUSAL
from warploom.attention.variants.sliding_window import SLIDING_WINDOW
from warploom.core.errors import ArgumentError
from warploom.core.jit import cpp_type

__all__ = [
    "MAX_ARGUMENTS",
    "VariantArguments",
    "VariantSource",
    "compiled_variants",
    "variant_arguments",
    "variant_source",
]

MAX_ARGUMENTS = 8  # of each kind: `kMaxVariantArguments`
_OF_THE_KERNEL = (CAUSAL, SLIDING_WINDOW)  # which decide what it looks at
# Lengths are 64-bit, so that products with them are: a mask may have more than 2**31 elements.
_POSITION = {
    name: "int64_t" if name.endswith("_len") else "int"
    for name in ("batch_idx", "qo_idx", "kv_idx", "qo_pos", "qo_head_idx", "kv_head_idx", "qo_len", "kv_len")
}


@dataclass(frozen=True)
class VariantSource:
    """A type for `Config::Variant`, and the C++ that defines it."""

    cpp_type: str
    prelude: str


@dataclass
class VariantArguments:
    """What the kernel's parameters hold for the variants; `tensors` keeps copies alive."""

    tensors: list[Any]
    integers: list[int]
    numbers: list[float]


def compiled_variants(problem: AttentionProblem, user: AttentionVariant | None) -> tuple[AttentionVariant, ...]:
    """The variants that change logits or mask, in the order in which they apply."""
    builtin = [each for each in BUILTIN_VARIANTS if each.active(problem) and each not in _OF_THE_KERNEL]
    return tuple(each for each in [*builtin, *([user] if user else [])] if each.logits or each.mask)


def _scalars(variant: AttentionVariant) -> dict[str, type]:
    """Those that are arguments of a launch."""
    return {name: kind for name, kind in variant.scalars.items() if name not in _of_request(variant)}


def _of_request(variant: AttentionVariant) -> Mapping[str, str]:
    """Scalars that the kernel finds for each request: their expressions."""
    return variant.of_request if isinstance(variant, BuiltinVariant) else {}


def _check_arguments(variants: tuple[AttentionVariant, ...]) -> None:
    kinds = [kind for each in variants for kind in _scalars(each).values()]
    counts = {
        "tensors": sum(len(each.tensors) for each in variants),
        "int scalars": kinds.count(int),
        "float scalars": kinds.count(float),
    }
    for what, count in counts.items():
        if count > MAX_ARGUMENTS:
            names = ", ".join(each.name for each in variants)
            raise ArgumentError.of("variants", names, f"with {MAX_ARGUMENTS} {what} together at most", count)


@functools.lru_cache(256)
def variant_source(variants: tuple[AttentionVariant, ...]) -> VariantSource:
    """The C++ of variants that apply one after another.

    Examples
    --------
    >>> from warploom.attention.variants.soft_cap import SOFT_CAP
    >>> print(variant_source((SOFT_CAP,)).prelude.split("logits) {")[1])  # doctest: +ELLIPSIS
    <BLANKLINE>
    ...
        const float soft_cap = params.numbers[0];
        logits = soft_cap * tanhf(logits / soft_cap);
    ...
    """
    if not variants:
        return VariantSource("warploom::attention::NoVariant", "")
    _check_arguments(variants)
    position = [f"    [[maybe_unused]] const {kind} {name} = at.{name};" for name, kind in _POSITION.items()]
    logits, masks = [], []
    tensors = integers = numbers = 0
    for variant in variants:
        names = []
        for name, dtype in variant.tensors.items():
            element = cpp_type(dtype)
            names.append(f"    const {element}* {name} = static_cast<const {element}*>(params.tensors[{tensors}]);")
            tensors += 1
        for name, kind in _scalars(variant).items():
            if kind is int:
                names.append(f"    const int64_t {name} = params.integers[{integers}];")
                integers += 1
            else:
                names.append(f"    const float {name} = params.numbers[{numbers}];")
                numbers += 1
        names += [f"    const int64_t {name} = {value};" for name, value in _of_request(variant).items()]
        if variant.logits:
            logits += ["    {", *names, f"    logits = {variant.logits};", "    }"]
        if variant.mask:
            masks += ["    {", *names, f"    if (!({variant.mask})) return false;", "    }"]
    prelude = "\n".join(
        [
            "namespace warploom::attention {",
            "struct PlannedVariant {",
            f"  static constexpr bool kHasLogits = {str(bool(logits)).lower()};",
            f"  static constexpr bool kHasMask = {str(bool(masks)).lower()};",
            "  WL_DEVICE static float logits(const AttentionParams& params, const LogitPosition& at, float logits) {",
            *position,
            *logits,
            "    return logits;",
            "  }",
            "  WL_DEVICE static bool mask(const AttentionParams& params, const LogitPosition& at) {",
            *position,
            *masks,
            "    return true;",
            "  }",
            "};",
            "}  // namespace warploom::attention",
        ]
    )
    return VariantSource("warploom::attention::PlannedVariant", prelude)


def variant_arguments(
    variants: tuple[AttentionVariant, ...], plan: AttentionPlan, call: AttentionCall
) -> VariantArguments:
    """The arguments of one launch, in the order of `variant_source`."""
    found = VariantArguments([], [], [])
    for variant in variants:
        if isinstance(variant, BuiltinVariant):
            values = variant.values(plan, call, None)
        else:
            values = variant.named(call.extra_tensors, call.extra_scalars)
        for name, dtype in variant.tensors.items():
            tensor: torch.Tensor = values[name]
            found.tensors.append(tensor.to(dtype).contiguous())
        for name, kind in _scalars(variant).items():
            (found.integers if kind is int else found.numbers).append(values[name])
    return found
