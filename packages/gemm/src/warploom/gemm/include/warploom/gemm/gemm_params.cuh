// What a matrix product is launched with.
#pragma once

#include "warploom/common.cuh"

namespace warploom::gemm {

// out[tokens, n] = tokens[.., k] weights[n, k]^T, of one matrix or of groups, each with its own tokens and weights. Strides are in
// elements.
struct GemmParams {
  void* out;
  const float* token_scales;   // of blocks, or of rows
  const float* weight_scales;
  const void* bias;            // [n]
  const int* sizes;            // offsets of the groups, or their numbers of rows, in words of `sizes_step`; null if all have `rows`
  const int* weight_indices;   // of the groups, in words of `indices_step`, or null
  const int* row_indices;      // token of each row, in words of `row_indices_step`, where rows are gathered
  const uint8_t* tokens;       // that are gathered
  int64_t out_group_stride;
  int64_t out_row_stride;
  int64_t token_scale_group_stride;
  int64_t weight_scale_group_stride;
  int64_t token_bytes;         // from a gathered token to the next
  int token_scale_row_stride;
  int token_scale_k_stride;
  int weight_scale_row_stride;
  int weight_scale_k_stride;
  int token_scale_rows;   // that share a scale
  int weight_scale_rows;
  int scale_steps;        // of k, that share a scale
  int rows;               // of all groups by offsets, else of each
  int n;
  int k_steps;
  int groups;
  int num_weights;
  int weights_step;       // from a group's weights to the next: 0 if all share them
  int sizes_step;
  int indices_step;
  int row_indices_step;
  int num_tokens;         // that rows are gathered from
  int k_bytes;            // of a token
  int bias_type;          // BiasType
  int band;               // tiles of tokens that are worked on before the next tile of weights
  int weight_tile;        // rows of weights in a tile: no more than the kernel's, which balances blocks' work
  int stage_bytes;        // of a step's operands
};

// The token of a row. A wrong index takes one that is there.
template <class Config>
WL_DEVICE int token_of_row(const GemmParams& params, int row) {
  if constexpr (!Config::kGathers) return row;
  return min(max(params.row_indices[int64_t(row) * params.row_indices_step], 0), params.num_tokens - 1);
}

enum BiasType { kFloatBias, kHalfBias, kBfloatBias };

}  // namespace warploom::gemm
