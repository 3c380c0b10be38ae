"""Matrix products for LLM serving: bf16 and fp8, dense, grouped and segmented, and the quantisers that feed them.

=====================  =============================================================
module                 operators
=====================  =============================================================
``dense``              `mm_bf16`, `bmm_bf16`
``scaled``             `mm_fp8`, `bmm_fp8`: scales of whole tensors or rows
``groupwise``          `gemm_fp8_nt_groupwise` and its like: scales of blocks
``grouped``            `grouped_mm_bf16`, `grouped_mm_fp8`: rows in groups, each with
                       its own matrix
``grouped_groupwise``  `group_gemm_fp8_nt_groupwise`: groups with scales of blocks
``masked``             `batch_gemm_fp8_nt_groupwise_masked`: a batch of which the
                       first rows of each matrix count
``segment``            `SegmentGEMMWrapper`: LoRA
``quantize``           `per_token_group_quant_fp8`, `per_block_quant_fp8`,
                       `per_tensor_quant_fp8`
``quantize_fused``     `silu_and_mul_quant_fp8`, `rmsnorm_quant_fp8`: computed and
                       quantised in one pass
=====================  =============================================================
"""

from warploom.gemm.dense import bmm_bf16, mm_bf16
from warploom.gemm.grouped import grouped_mm_bf16, grouped_mm_fp8
from warploom.gemm.grouped_groupwise import group_gemm_fp8_nt_groupwise
from warploom.gemm.groupwise import fp8_blockscale_gemm_sm90, gemm_fp8_nt_blockscaled, gemm_fp8_nt_groupwise
from warploom.gemm.masked import batch_gemm_fp8_nt_groupwise_masked
from warploom.gemm.quantize import per_block_quant_fp8, per_tensor_quant_fp8, per_token_group_quant_fp8
from warploom.gemm.quantize_fused import rmsnorm_quant_fp8, silu_and_mul_quant_fp8
from warploom.gemm.scaled import bmm_fp8, mm_fp8
from warploom.gemm.segment import SegmentGEMMWrapper

__all__ = [
    "SegmentGEMMWrapper",
    "batch_gemm_fp8_nt_groupwise_masked",
    "bmm_bf16",
    "bmm_fp8",
    "fp8_blockscale_gemm_sm90",
    "gemm_fp8_nt_blockscaled",
    "gemm_fp8_nt_groupwise",
    "group_gemm_fp8_nt_groupwise",
    "grouped_mm_bf16",
    "grouped_mm_fp8",
    "mm_bf16",
    "mm_fp8",
    "per_block_quant_fp8",
    "per_tensor_quant_fp8",
    "per_token_group_quant_fp8",
    "rmsnorm_quant_fp8",
    "silu_and_mul_quant_fp8",
]
