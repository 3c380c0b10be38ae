"""The operator families: which distribution brings which module and which public names.

Families announce themselves by an entry point in the group ``warploom.families``, whose name becomes an attribute of
``warploom`` and whose value is the module with the public names. The table below repeats this for the project's own
families, so that a name of a family that is not installed can say what to install, and so that the first use of a name
imports one family and not all. A family of somebody else needs no line here.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["FAMILIES", "GROUP", "Family", "explain_missing_imports", "installed", "public_names", "resolve"]

GROUP = "warploom.families"


@dataclass(frozen=True)
class Family:
    """A family of the project.

    Attributes
    ----------
    distribution : str
        What to ``pip install``.
    modules : tuple of str
        Its modules under ``warploom``; the first one has the public names.
    names : tuple of str
        The public names, ``__all__`` of that module.
    """

    distribution: str
    modules: tuple[str, ...]
    names: tuple[str, ...]


# tests/packaging/test_public_names.py compares the names with each installed family and prints what to paste here.
_ATTENTION_NAMES = """
AttentionVariant BatchAttention BatchDecodeWithPagedKVCacheWrapper BatchDecodeWithSharedPrefixPagedKVCacheWrapper
BatchPrefillWithPagedKVCacheWrapper BatchPrefillWithRaggedKVCacheWrapper
BatchPrefillWithSharedPrefixPagedKVCacheWrapper CUDAGraphBatchDecodeWithPagedKVCacheWrapper
MultiLevelCascadeAttentionWrapper append_paged_kv_cache append_paged_mla_kv_cache apply_llama31_rope
apply_llama31_rope_inplace apply_llama31_rope_pos_ids apply_llama31_rope_pos_ids_inplace apply_rope
apply_rope_append_paged_kv_cache apply_rope_inplace apply_rope_pos_ids apply_rope_pos_ids_inplace
apply_rope_with_cos_sin_cache apply_rope_with_cos_sin_cache_inplace fast_decode_plan get_batch_indices_positions
get_seq_lens merge_state merge_state_in_place merge_states packbits segment_packbits single_decode_with_kv_cache
single_prefill_with_kv_cache single_prefill_with_kv_cache_return_lse
"""
_COMM_NAMES = """
AllReduceFusionPattern AllReduceFusionWorkspace Communicator MoeAlltoAll SymmetricBuffer Topology all_gather
all_reduce all_to_all allreduce_fusion create_allreduce_fusion_workspace reduce_scatter
"""
_GEMM_NAMES = """
SegmentGEMMWrapper batch_gemm_fp8_nt_groupwise_masked bmm_bf16 bmm_fp8 fp8_blockscale_gemm_sm90
gemm_fp8_nt_blockscaled gemm_fp8_nt_groupwise group_gemm_fp8_nt_groupwise grouped_mm_bf16 grouped_mm_fp8 mm_bf16
mm_fp8 per_block_quant_fp8 per_tensor_quant_fp8 per_token_group_quant_fp8 rmsnorm_quant_fp8 silu_and_mul_quant_fp8
"""
_SAMPLING_NAMES = """
chain_speculative_sampling min_p_renorm_probs min_p_sampling_from_logits min_p_sampling_from_probs
sampling_from_logits sampling_from_probs softmax top_k top_k_mask_logits top_k_renorm_probs top_k_sampling_from_logits
top_k_sampling_from_probs top_k_top_p_sampling_from_logits top_k_top_p_sampling_from_probs top_p_renorm_probs
top_p_sampling_from_logits top_p_sampling_from_probs
"""
FAMILIES: dict[str, Family] = {
    "attention": Family("warploom-attention", ("attention",), tuple(_ATTENTION_NAMES.split())),
    "comm": Family("warploom-comm", ("comm",), tuple(_COMM_NAMES.split())),
    "gemm": Family("warploom-gemm", ("gemm",), tuple(_GEMM_NAMES.split())),
    "sampling": Family("warploom-sampling", ("sampling", "logits_processor"), tuple(_SAMPLING_NAMES.split())),
}
_CORE_NAMES = {
    "ArgumentError": "warploom.core.errors",
    "CommunicationError": "warploom.core.errors",
    "CompileError": "warploom.core.errors",
    "PerformanceWarning": "warploom.core.errors",
    "PlanError": "warploom.core.errors",
    "UnsupportedError": "warploom.core.errors",
    "WarploomError": "warploom.core.errors",
    "settings": "warploom.core.settings",
}
_FAMILY_OF_MODULE = {module: family for family in FAMILIES.values() for module in family.modules}
_FAMILY_OF_NAME = {name: family for family in FAMILIES.values() for name in family.names}


@functools.cache
def installed() -> dict[str, EntryPoint]:
    """Entry points of the installed families by name; reads the metadata of the environment once."""
    from importlib.metadata import entry_points  # 20 ms, which a bare `import warploom` need not spend

    return {point.name: point for point in entry_points(group=GROUP)}


def resolve(name: str) -> Any:
    """Find a public name of any family, or a family's module, and import what it needs.

    Raises
    ------
    ImportError
        The name belongs to a family that is not installed; the message says what to install.
    AttributeError
        No family has the name; the message offers near ones.
    """
    if name.startswith("__"):  # probes by inspect, pickle, doctest ...; no family defines such a name
        raise AttributeError(f"module 'warploom' has no attribute {name!r}")
    if name in _CORE_NAMES:
        return getattr(importlib.import_module(_CORE_NAMES[name]), name)
    if name in _FAMILY_OF_MODULE:
        return importlib.import_module(f"warploom.{name}")
    if name in _FAMILY_OF_NAME:
        return getattr(_module_with(name, _FAMILY_OF_NAME[name]), name)
    for point in installed().values():
        module = _load(point, name)
        if name == point.name:
            return module
        if name in _exports(module):
            return getattr(module, name)
    near = difflib.get_close_matches(name, {*public_names(), *_FAMILY_OF_MODULE, *_FAMILY_OF_NAME}, n=3, cutoff=0.7)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise AttributeError(f"module 'warploom' has no attribute {name!r}{hint}")


def public_names() -> list[str]:
    """Names under ``warploom`` that the installed distributions offer; imports nothing."""
    ours = [family for key, family in FAMILIES.items() if key in installed()]
    names = [*_CORE_NAMES, *installed(), *(name for family in ours for name in family.modules + family.names)]
    return sorted(set(names))


def _module_with(name: str, family: Family) -> ModuleType:
    module = f"warploom.{family.modules[0]}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # the family is there, something that it needs is not
            raise
        raise ModuleNotFoundError(_advice(f"warploom.{name}", family), name=module) from None


def _load(point: EntryPoint, name: str) -> ModuleType:
    try:
        return importlib.import_module(point.module)
    except ImportError as error:
        raise ImportError(
            f"looking for warploom.{name}: the family {point.name!r} ({point.module}) does not import: {error}",
            name=point.module,
        ) from error


def _exports(module: ModuleType) -> Sequence[str]:
    return getattr(module, "__all__", ())


def _advice(wanted: str, family: Family) -> str:
    return f"{wanted} is part of {family.distribution}, which is not installed: pip install {family.distribution}"


class _MissingFamilyFinder:
    """Last finder on ``sys.meta_path``: makes ``import warploom.<family>`` say what to install.

    It speaks up for import statements only. `importlib.util.find_spec`, by which engines probe for optional
    packages, asks the finders too and must go on answering None.
    """

    @classmethod
    def find_spec(cls, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        if package == "warploom" and module in _FAMILY_OF_MODULE and _imported_by_statement():
            raise ModuleNotFoundError(_advice(fullname, _FAMILY_OF_MODULE[module]), name=fullname)
        return None


def _imported_by_statement() -> bool:
    """Whether the finder's caller, `importlib._bootstrap._find_spec`, serves an import rather than a probe."""
    # The frames: this function, the finder, _find_spec, and then _find_and_load_unlocked for an import.
    return sys._getframe(3).f_code.co_name == "_find_and_load_unlocked"


def explain_missing_imports() -> None:
    """Install the finder, once."""
    if _MissingFamilyFinder not in sys.meta_path:
        sys.meta_path.append(_MissingFamilyFinder)
