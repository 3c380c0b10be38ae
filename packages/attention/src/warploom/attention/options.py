"""What a plan fixes for all its calls besides lengths and tables, checked once for every entry point."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from warploom.attention.problems.attention import MAX_HEAD_DIM, AttentionProblem
from warploom.attention.variants.base import AttentionVariant
from warploom.core.device import sm_count
from warploom.core.errors import ArgumentError
from warploom.core.tensors import as_dtype

__all__ = ["FEW_ROWS", "FP8_DTYPES", "AttentionOptions"]

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
WIDE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FEW_ROWS = 16  # of a tensor core's product
POS_ENCODINGS = ("NONE", "ROPE_LLAMA", "ALIBI")
_ARRAYS = {torch.Tensor, torch.nn.Parameter, np.ndarray}
LSE_UNITS = {"log2": math.log2(math.e), "e": 1.0}


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Sizes, dtypes and variants of attention as the caller gives them; `resolve` fills the defaults in and checks.

    `None` for `sm_scale`, `logits_soft_cap`, `rope_scale`, `rope_theta`, `head_dim_vo`, `dtype_kv` and `dtype_o` means
    the default: `head_dim_qk ** -0.5`, no cap, 1, 1e4, `head_dim_qk`, `dtype_q`, and `dtype_q` (bfloat16 for fp8
    queries).
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: Any = None
    page_size: int = 0
    kv_layout: str = "NHD"
    dtype_q: Any = torch.float16
    dtype_kv: Any = None
    dtype_o: Any = None
    causal: bool = False
    sm_scale: Any = None
    window_left: Any = -1
    logits_soft_cap: Any = None
    pos_encoding_mode: str = "NONE"
    rope_scale: Any = None
    rope_theta: Any = None
    lse_base: str = "log2"
    deterministic: bool = False
    variant: AttentionVariant | None = None
    _problems: dict[Any, AttentionProblem] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def resolved(cls, op: str, choices: dict[str, Any]) -> AttentionOptions:
        """`cls(**choices).resolve(op)`: once for the same choices, which a wrapper is given step after step."""
        if not _ARRAYS.isdisjoint(map(type, choices.values())):
            return cls(**choices).resolve(op)  # whose numbers may change
        try:
            return _resolved(op, **choices)
        except TypeError:  # a choice that has no hash, or is no choice
            return cls(**choices).resolve(op)

    def resolve(self, op: str) -> AttentionOptions:
        """The same with every default filled in.

        Raises
        ------
        ArgumentError
            A size, dtype or option that no backend could serve.
        """
        dtype_q = as_dtype(self.dtype_q, op, "q_data_type")
        dtype_o = (torch.bfloat16 if dtype_q in FP8_DTYPES else dtype_q) if self.dtype_o is None else self.dtype_o
        head_dim_qk = _count(op, "head_dim_qk", self.head_dim_qk)
        resolved = replace(
            self,
            num_qo_heads=_count(op, "num_qo_heads", self.num_qo_heads),
            num_kv_heads=_count(op, "num_kv_heads", self.num_kv_heads),
            head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_qk if self.head_dim_vo is None else _count(op, "head_dim_vo", self.head_dim_vo),
            dtype_q=dtype_q,
            dtype_kv=dtype_q if self.dtype_kv is None else as_dtype(self.dtype_kv, op, "kv_data_type"),
            dtype_o=as_dtype(dtype_o, op, "o_data_type"),
            sm_scale=head_dim_qk**-0.5 if self.sm_scale is None else float(self.sm_scale),
            window_left=-1 if self.window_left is None else int(self.window_left),
            logits_soft_cap=float(self.logits_soft_cap or 0.0),
            rope_scale=1.0 if self.rope_scale is None else float(self.rope_scale),
            rope_theta=1e4 if self.rope_theta is None else float(self.rope_theta),
        )
        resolved._check_sizes(op)
        resolved._check_choices(op)
        return resolved

    def override(self, op: str, **changes: Any) -> AttentionOptions:
        """The same with the changes that are not None, for calls that differ from their plan."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given).resolve(op) if given else self

    def problem(
        self,
        phase: str,
        kv_source: str,
        at: torch.device,
        *,
        mask: str = "none",
        sinks: bool = False,
        cuda_graph: bool = False,
        longest: int | None = None,
    ) -> AttentionProblem:
        """Describe the request for backend selection; `longest`: the most queries of a request, where that is known."""
        few_rows = longest is not None and longest * self.num_qo_heads // self.num_kv_heads <= FEW_ROWS
        key = phase, kv_source, at, mask, sinks, cuda_graph, few_rows
        if key not in self._problems:
            self._problems[key] = self._describe(*key)
        return self._problems[key]

    def _describe(
        self, phase: str, kv_source: str, at: torch.device, mask: str, sinks: bool, cuda_graph: bool, few_rows: bool
    ) -> AttentionProblem:
        return AttentionProblem(
            phase=phase,
            kv_source=kv_source,
            dtype_q=self.dtype_q,
            dtype_kv=self.dtype_kv,
            dtype_o=self.dtype_o,
            num_qo_heads=self.num_qo_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim_qk=self.head_dim_qk,
            head_dim_vo=self.head_dim_vo,
            page_size=self.page_size,
            kv_layout=self.kv_layout,
            causal=self.causal and mask == "none",  # a custom mask takes the place of the causal one
            sliding_window=self.window_left >= 0,
            soft_cap=self.logits_soft_cap > 0,
            mask=mask,
            pos_encoding=self.pos_encoding_mode,
            sinks=sinks,
            variant="" if self.variant is None else self.variant.name,
            deterministic=self.deterministic,
            cuda_graph=cuda_graph,
            few_rows=few_rows,
            sm_count=sm_count(at),
            **AttentionProblem.where(at),
        )

    @property
    def lse_unit(self) -> float:
        """What one natural unit of the log-sum-exp is in the base that the caller wants."""
        return LSE_UNITS[self.lse_base]

    def _check_sizes(self, op: str) -> None:
        def require(condition: bool, name: str, expected: str, got: object) -> None:
            if not condition:
                raise ArgumentError.of(op, name, expected, got)

        heads = self.num_qo_heads % self.num_kv_heads == 0
        require(heads, "num_qo_heads", f"a multiple of num_kv_heads = {self.num_kv_heads}", self.num_qo_heads)
        for name in ("head_dim_qk", "head_dim_vo"):
            size = getattr(self, name)
            require(size % 8 == 0 and size <= MAX_HEAD_DIM, name, f"a multiple of 8 up to {MAX_HEAD_DIM}", size)
        require(self.page_size >= 0, "page_size", "1 or more", self.page_size)
        for name, dtype in (("q_data_type", self.dtype_q), ("kv_data_type", self.dtype_kv)):
            require(
                dtype in WIDE_DTYPES + FP8_DTYPES, name, "float16, bfloat16, float32, float64 or an fp8 type", dtype
            )
        require(self.dtype_o in WIDE_DTYPES, "o_data_type", "float16, bfloat16, float32 or float64", self.dtype_o)

    def _check_choices(self, op: str) -> None:
        for name, choices in (
            ("kv_layout", ("NHD", "HND")),
            ("pos_encoding_mode", POS_ENCODINGS),
            ("lse_base", tuple(LSE_UNITS)),
        ):
            if getattr(self, name) not in choices:
                raise ArgumentError.of(op, name, " or ".join(map(repr, choices)), repr(getattr(self, name)))
        if self.variant is not None and not isinstance(self.variant, AttentionVariant):
            raise ArgumentError.of(op, "variant", "an AttentionVariant", type(self.variant).__name__)
        if not _finite(self.sm_scale):
            raise ArgumentError.of(op, "sm_scale", "finite", self.sm_scale)
        if not (_finite(self.logits_soft_cap) and self.logits_soft_cap >= 0):
            raise ArgumentError.of(op, "logits_soft_cap", "positive, or 0 or None for none", self.logits_soft_cap)
        for name in ("rope_scale", "rope_theta"):
            if not (_finite(getattr(self, name)) and getattr(self, name) > 0):
                raise ArgumentError.of(op, name, "positive", getattr(self, name))


@functools.lru_cache(maxsize=256, typed=True)
def _resolved(op: str, **choices: Any) -> AttentionOptions:
    return AttentionOptions(**choices).resolve(op)


def _finite(value: float) -> bool:
    """`math.isfinite` for numbers that torch.compile may be tracing; false for NaN."""
    return -math.inf < value < math.inf


def _count(op: str, name: str, value: Any) -> int:
    """A positive integer; a bool or a float is a misplaced argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArgumentError.of(op, name, "an integer", f"{type(value).__name__} {value!r}")
    if value < 1:
        raise ArgumentError.of(op, name, "1 or more", value)
    return int(value)
