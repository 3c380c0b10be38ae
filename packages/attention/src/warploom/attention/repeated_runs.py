"""Runs that differ from an earlier one in nothing but where the tensors lie.

A model runs the plan of a step in every layer, with tensors of the same shapes, and the plan of the next step has other lengths
but seldom another number of requests. What was checked and prepared for the first layer of the first such step serves the
others, which take a tenth of the host time.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from warploom.attention.plan import AttentionCall, AttentionPlan, PreparedCall
from warploom.core.calls import Kept
from warploom.core.settings import settings

__all__ = ["RepeatedRuns"]

_ALIGNMENT = 16  # of addresses, as `AttentionBackend.prepare` assumes
_MOST_RUNS = 64  # steps of ever new numbers of queries leave them behind
_PLAIN = frozenset({type(None), int, float, bool})


class RepeatedRuns:
    """The prepared runs of a wrapper, by all that matters of their arguments but the addresses."""

    def __init__(self) -> None:
        self._plan: AttentionPlan | None = None
        self._known: Kept[Hashable, _RepeatedRun] = Kept(_MOST_RUNS)
        self._adapted: Kept[Hashable, _RepeatedRun] = Kept(_MOST_RUNS)  # of plans that were derived from the plan

    def follow(self, plan: AttentionPlan, is_checked: bool) -> None:
        """Serve another plan from now on: the runs of the one before stay where the two are of a kind.

        They do not if values are checked, as `settings.debug_checks` says.
        """
        before, self._plan = self._plan, plan
        if before is None or plan.kind is None or plan.kind != before.kind or is_checked:
            self._known.clear()
        self._adapted.clear()

    def key(self, q: Any, kv: Any, out: Any, lse: Any, *numbers: Any) -> Hashable | None:
        """What a run is known by; None if it has to be looked at anew.

        `numbers` are the other arguments: only None, numbers and flags are what they say.
        """
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return None
        if not _PLAIN.issuperset(map(type, numbers)):
            return None
        parts: list[Any] = [settings.version, numbers]
        for x in (q, *kv, out, lse) if isinstance(kv, (tuple, list)) else (q, kv, out, lse):
            if x is None:
                parts.append(None)
            elif type(x) is torch.Tensor and not x.requires_grad:
                parts += (x.shape, x.stride(), x.dtype, x.device)
            else:
                return None
        return tuple(parts)

    def repeat(self, key: Hashable | None, q: Any, kv: Any, out: Any, lse: Any) -> Any:
        """The result of a known run, which has been started; None if it is not known or does not suit these addresses."""
        if key is None:
            return None
        run = self._known.get(key) or self._adapted.get(key)
        return None if run is None else run(run.plan or self._plan, q, kv, out, lse)

    def remember(
        self, key: Hashable | None, plan: AttentionPlan, call: AttentionCall, kv: Any, return_lse: bool
    ) -> None:
        """Prepare a run that was checked, for the next ones like it."""
        is_plain = call.sinks is None and call.logits_scales is None and call.value_scales is None
        if key is None or not is_plain or settings.debug_checks:
            return
        prepared = plan.server.prepare(plan, call)
        if prepared is None:
            return
        is_own = plan is self._plan
        runs = self._known if is_own else self._adapted
        runs.keep(key, _RepeatedRun(None if is_own else plan, prepared, call, kv, return_lse))


class _RepeatedRun:
    """A prepared call, and the outputs of those who do not bring their own."""

    __slots__ = ("_device", "_device_index", "_lse", "_offsets", "_out", "_prepared", "_return_lse", "plan")

    def __init__(
        self, plan: AttentionPlan | None, prepared: PreparedCall, call: AttentionCall, kv: Any, return_lse: bool
    ) -> None:
        self.plan = plan  # if it is not the wrapper's
        self._prepared = prepared
        self._return_lse = return_lse
        self._device = call.q.device
        self._device_index = call.q.device.index if call.q.is_cuda else None
        # Sizes and strides of what callers do not bring; torch reads plain tuples in half the time.
        self._out = tuple(call.out.shape), call.out.stride(), call.out.dtype
        self._lse = None if call.lse is None else (tuple(call.lse.shape), call.lse.stride())
        # Keys and values in one tensor, as bytes from its start.
        start = kv.data_ptr() if isinstance(kv, torch.Tensor) else 0
        self._offsets = (call.k.data_ptr() - start, call.v.data_ptr() - start)

    def __call__(self, plan: Any, q: torch.Tensor, kv: Any, out: torch.Tensor | None, lse: torch.Tensor | None) -> Any:
        if isinstance(kv, torch.Tensor):
            start = kv.data_ptr()
            k, v = start + self._offsets[0], start + self._offsets[1]
        else:
            k, v = kv[0].data_ptr(), kv[1].data_ptr()
        if out is None:
            sizes, strides, dtype = self._out
            out = torch.empty_strided(sizes, strides, dtype=dtype, device=self._device)
        addresses = (q.data_ptr(), k, v, out.data_ptr())
        if (addresses[0] | k | v | addresses[3]) % _ALIGNMENT:
            return None
        if self._device_index is not None and torch._C._cuda_getDevice() != self._device_index:
            return None
        if lse is None and self._lse is not None:
            lse = torch.empty_strided(*self._lse, dtype=torch.float32, device=self._device)
        self._prepared(plan, *addresses, 0 if lse is None else lse.data_ptr())
        return (out, lse) if self._return_lse else out
