"""What a variant of attention is: pieces of the logits, mask, inputs or outputs that it changes.

Every variant says what it does twice: as expressions that kernels compile in (only those of the variants that a plan
uses), and as torch functions that the reference applies. The expressions are CUDA C++ over these names:

=================  ===================================================================================================
`logits`           the scaled logit, float: `dot(q, k) * sm_scale`, after the variants before this one
`batch_idx`        request
`qo_idx`           query row within its request, 0 to `qo_len - 1`
`kv_idx`           key row within its request, 0 to `kv_len - 1`
`qo_pos`           the query's position among the keys, `qo_idx + kv_len - qo_len`: queries are the tail of the keys
`qo_head_idx`      query head
`kv_head_idx`      key-value head, `qo_head_idx / group_size`
`qo_len, kv_len`   lengths of the request
=================  ===================================================================================================

and over the names of the variant's own tensors (pointers to contiguous elements) and scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from warploom.attention.handles import HandleTable
from warploom.core.errors import ArgumentError

if TYPE_CHECKING:
    from warploom.attention.plan import AttentionCall, AttentionPlan

__all__ = ["AttentionVariant", "BuiltinVariant", "LogitsContext", "variant_of"]

RESERVED_NAMES = (
    "logits", "batch_idx", "qo_idx", "kv_idx", "qo_pos", "qo_head_idx", "kv_head_idx", "qo_len", "kv_len",
)  # fmt: skip

_ALIVE: HandleTable[AttentionVariant] = HandleTable("variant")


class LogitsContext:
    """The names of the expressions as torch values that broadcast against logits `[num_qo_heads, rows, kv_len]`.

    `qo_idx` and `qo_pos` are `[rows, 1]`, `kv_idx` is `[1, kv_len]`, the heads are `[num_qo_heads, 1, 1]`, all int64
    tensors; `batch_idx`, `qo_len` and `kv_len` are integers. The variant's tensors and scalars are attributes too.
    """

    def __init__(
        self,
        batch_idx: int,
        rows: range,
        qo_len: int,
        kv_len: int,
        num_qo_heads: int,
        group_size: int,
        device: torch.device,
    ) -> None:
        self.batch_idx, self.qo_len, self.kv_len = batch_idx, qo_len, kv_len
        self.qo_idx = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
        self.kv_idx = torch.arange(kv_len, device=device).unsqueeze(0)
        self.qo_pos = self.qo_idx + (kv_len - qo_len)
        self.qo_head_idx = torch.arange(num_qo_heads, device=device).view(-1, 1, 1)
        self.kv_head_idx = self.qo_head_idx // group_size

    def with_names(self, names: Mapping[str, Any]) -> Any:
        """The same context with a variant's own tensors and scalars as attributes."""
        if not names:
            return self
        extended = LogitsContext.__new__(LogitsContext)
        extended.__dict__.update(self.__dict__)
        extended.__dict__.update(names)
        return extended


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionVariant:
    """A user's own change to the logits, the mask, or both; every wrapper and function takes it as `variant=`.

    Parameters
    ----------
    name : str
        A C identifier, shown by `explain`.
    logits : str, optional
        CUDA expression of the new logit; the module docstring lists the names that it may use.
    mask : str, optional
        CUDA expression that is true where the query may attend to the key.
    tensors : mapping of str to torch.dtype
        Extra tensors by name, in the order in which `run` takes them after the cache.
    scalars : mapping of str to type
        Extra scalars, `float` or `int`, which follow the tensors.
    reference_logits : callable, optional
        `f(logits, at)`: the torch form of `logits`, on float32 `[num_qo_heads, rows, kv_len]`; `at` is a
        `LogitsContext`.
    reference_mask : callable, optional
        `f(at)`: the torch form of `mask`, a boolean tensor that broadcasts to the same shape.

    Raises
    ------
    ArgumentError
        A name is not an identifier or is reserved, or an expression has no torch form or the other way round.

    Examples
    --------
    A bias for each head and distance, clipped:

    >>> import torch
    >>> from warploom.attention import AttentionVariant, single_prefill_with_kv_cache
    >>> clipped = AttentionVariant(
    ...     name="clipped_bias",
    ...     logits="logits + bias[qo_head_idx * 8 + min(abs(qo_pos - kv_idx), 7)]",
    ...     tensors={"bias": torch.float32},
    ...     reference_logits=lambda logits, at: (
    ...         logits + at.bias[at.qo_head_idx, (at.qo_pos - at.kv_idx).abs().clamp(max=7)]
    ...     ),
    ... )
    >>> q, k, v = torch.randn(4, 2, 64), torch.randn(9, 2, 64), torch.randn(9, 2, 64)
    >>> single_prefill_with_kv_cache(q, k, v, causal=True, variant=clipped, variant_args=(torch.randn(2, 8),)).shape
    torch.Size([4, 2, 64])
    """

    name: str
    logits: str | None = None
    mask: str | None = None
    tensors: Mapping[str, torch.dtype] = field(default_factory=dict)
    scalars: Mapping[str, type] = field(default_factory=dict)
    reference_logits: Callable[[torch.Tensor, Any], torch.Tensor] | None = None
    reference_mask: Callable[[Any], torch.Tensor] | None = None
    handle: int = field(init=False, repr=False)  # stands for this object in calls of torch operators; see `variant_of`

    def __post_init__(self) -> None:
        for given in (self.name, *self.tensors, *self.scalars):
            if not given.isidentifier() or given in RESERVED_NAMES:
                hint = f"Reserved are {', '.join(RESERVED_NAMES)}."
                raise ArgumentError.of(
                    "AttentionVariant", "name", "a C identifier that is not reserved", repr(given), hint
                )
        for name, dtype in self.scalars.items():
            if dtype not in (float, int):
                raise ArgumentError.of("AttentionVariant", f"scalars[{name!r}]", "float or int", repr(dtype))
        for what in ("logits", "mask"):
            if (getattr(self, what) is None) != (getattr(self, f"reference_{what}") is None):
                raise ArgumentError.of(
                    "AttentionVariant", what, f"given together with `reference_{what}`", "one of the two",
                    "Kernels compile the expression, the reference applies the function.",
                )  # fmt: skip
        object.__setattr__(self, "handle", _ALIVE.add(self))

    def bind(self, op: str, args: tuple[Any, ...]) -> tuple[list[torch.Tensor], list[float]]:
        """Split the caller's extra arguments into tensors and scalars, in the declared order."""
        expected = [*self.tensors, *self.scalars]
        if len(args) != len(expected):
            names = ", ".join(expected) or "no extra arguments"
            raise ArgumentError.of(
                op, "args", f"the arguments of variant {self.name!r}: {names}", f"{len(args)} of them"
            )
        tensors = list(args[: len(self.tensors)])
        for (name, dtype), tensor in zip(self.tensors.items(), tensors, strict=True):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype:
                got = getattr(tensor, "dtype", type(tensor).__name__)
                raise ArgumentError.of(op, name, f"a {dtype} tensor, as variant {self.name!r} declares", got)
        return tensors, [float(value) for value in args[len(self.tensors) :]]

    def named(self, tensors: list[torch.Tensor], scalars: list[float]) -> dict[str, Any]:
        """The bound arguments by name, scalars in their declared types."""
        values = [kind(value) for kind, value in zip(self.scalars.values(), scalars, strict=True)]
        return {**dict(zip(self.tensors, tensors, strict=True)), **dict(zip(self.scalars, values, strict=True))}


def variant_of(handle: int) -> AttentionVariant | None:
    """The living variant of a handle; 0 stands for none."""
    return _ALIVE[handle] if handle else None


@dataclass(frozen=True, eq=False, kw_only=True)
class BuiltinVariant(AttentionVariant):
    """A variant of the library: when it is on, what it takes from plan and call, and hooks that users' own do not need.

    Parameters
    ----------
    active : callable
        `f(problem)`: whether the plan uses it.
    values : callable
        `f(plan, call, batch_idx)`: its tensors and scalars for one request; for `batch_idx` None those of all requests.
    of_request : mapping of str to str
        CUDA expressions of the scalars that depend on the request.
    reference_inputs : callable, optional
        `f(q, k, at)`: changes queries and keys, `[rows, heads, head_dim]`, before their product.
    reference_output : callable, optional
        `f(out, lse, at)`: changes the result, `[rows, num_qo_heads, head_dim]` and natural `[rows, num_qo_heads]`.
    example : callable
        `f(num_qo_heads, qo_lens, kv_lens)`: arguments of `BatchAttention.plan` that turn it on, for tests and
        benchmarks.
    """

    active: Callable[[Any], bool]
    example: Callable[[int, Sequence[int], Sequence[int]], dict[str, Any]]
    values: Callable[[AttentionPlan, AttentionCall, int | None], dict[str, Any]] = lambda plan, call, batch_idx: {}
    of_request: Mapping[str, str] = field(default_factory=dict)
    reference_inputs: Callable[[torch.Tensor, torch.Tensor, Any], tuple[torch.Tensor, torch.Tensor]] | None = None
    reference_output: Callable[[torch.Tensor, torch.Tensor, Any], tuple[torch.Tensor, torch.Tensor]] | None = None
