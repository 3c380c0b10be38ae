// What every drawing kernel takes and gives: its parameters, the row that an output draws from, the token at the end.
#pragma once

#include "warploom/sampling/parts.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

// A parameter of every output row: `values[row * stride]`, or `value` without a tensor.
template <class V>
WL_DEVICE V of_row(const V* values, int64_t stride, V value, int64_t row) {
  return values ? values[row * stride] : value;
}

// An index of int32 or int64.
WL_DEVICE int64_t load_index(const void* indices, bool are_64_bit, int64_t at) {
  return are_64_bit ? static_cast<const int64_t*>(indices)[at] : static_cast<const int*>(indices)[at];
}

// The random numbers of a row, by the fields of any kernel's parameters.
template <class Params>
WL_DEVICE Draws draws_of(const Params& params, int64_t row) {
  return {uint64_t(of_row(params.seed, params.seed_stride, params.seed_value, row)),
          uint64_t(of_row(params.offset, params.offset_stride, params.offset_value, row)),
          params.rows_have_seeds ? 0u : uint32_t(row)};
}

// Filters of the chain, and those whose result top_p is a share of.
enum Filter { kHasTopK = 1, kHasTopP = 2, kHasMinP = 4, kTopKBeforeTopP = 8, kMinPBeforeTopP = 16 };

// Those of a row; absent ones keep all.
struct RowFilters {
  int steps;  // bits of `Filter`
  int top_k;
  float top_p;
  float min_p;

  WL_DEVICE bool selects(int vocab) const { return top_k >= 1 && top_k < vocab; }
  WL_DEVICE bool cut() const { return top_p < 1 && top_p > 0; }  // a mass has to be found
  WL_DEVICE bool keep_all(int vocab) const { return !(selects(vocab) || min_p > 0 || top_p < 1); }

  // Given the smallest values that top_k and min_p keep: that of what can be drawn, before top_p cuts, ...
  WL_DEVICE float minimum(float maximum, float of_top_k, float of_min_p) const {
    return top_p <= 0 ? maximum : fmaxf(of_top_k, of_min_p);
  }
  // ... and that of what top_p is a share of.
  WL_DEVICE float base(float of_top_k, float of_min_p) const {
    const float none = negative_infinity();
    return fmaxf(steps & kTopKBeforeTopP ? of_top_k : none, steps & kMinPBeforeTopP ? of_min_p : none);
  }
};

// Instead of a token: the next kernel has to find it; there is none.
constexpr int kPending = -1;
constexpr int kBadRow = -2;

struct DrawParams {
  const void* source;   // [source_rows, vocab], logits or probabilities
  const void* indices;  // [rows] source rows of the outputs, int32 or int64; or null
  int* tokens;          // [rows]; of draws
  bool* valid;          // [rows]
  void* probs;          // [rows, vocab]; of distributions
  const float* temperature;  // [rows], or null: as the other parameters
  const int* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seed;
  const int64_t* offset;
  int64_t source_stride;  // of rows, in elements
  int64_t token_stride;   // of tokens of a row
  int64_t indices_stride;
  int64_t tokens_stride;
  int64_t probs_stride;  // of rows
  int64_t prob_stride;   // of tokens of a row
  int64_t temperature_stride;
  int64_t top_k_stride;
  int64_t top_p_stride;
  int64_t min_p_stride;
  int64_t seed_stride;
  int64_t offset_stride;
  int64_t seed_value;
  int64_t offset_value;
  float temperature_value;
  int top_k_value;
  float top_p_value;
  float min_p_value;
  int vocab;
  int source_rows;
  int rows;  // to draw
  int indices_are_64_bit;
  int rows_have_seeds;   // the row's number is left out of its random numbers
  int filters;           // bits of `Filter`
  int only_pending;      // rows that the kernel before this one has left

  WL_DEVICE int64_t source_row(int64_t row) const {
    return indices ? load_index(indices, indices_are_64_bit, row * indices_stride) : row;
  }
  WL_DEVICE bool has(int64_t source_row) const { return source_row >= 0 && source_row < source_rows; }

  template <class T>
  WL_DEVICE SourceRow<T> load_row(int64_t source_row) const {
    return {static_cast<const T*>(source) + source_row * source_stride, token_stride, vocab};
  }
  WL_DEVICE float scale(int64_t row) const {
    return exponent_scale(of_row(temperature, temperature_stride, temperature_value, row));
  }
  WL_DEVICE RowFilters row_filters(int64_t row) const {
    return {filters, filters & kHasTopK ? of_row(top_k, top_k_stride, top_k_value, row) : 0,
            filters & kHasTopP ? of_row(top_p, top_p_stride, top_p_value, row) : 1.0f,
            filters & kHasMinP ? of_row(min_p, min_p_stride, min_p_value, row) : 0.0f};
  }
  WL_DEVICE Draws draws(int64_t row) const { return draws_of(*this, row); }

  // The first row from `row` on, `step` apart, that this kernel has to draw; `rows` if there is none. By whole warps.
  WL_DEVICE int next(int row, int step) const {
#pragma unroll 1
    for (; row < rows; row += kWarpSize * step) {
      const int64_t mine = row + lane_id() * int64_t(step);
      const bool is_wanted = mine < rows && (!only_pending || tokens[mine * tokens_stride] == kPending);
      const uint32_t wanted = __ballot_sync(kFullMask, is_wanted);
      if (wanted) return row + (__ffs(wanted) - 1) * step;
    }
    return rows;
  }
  // By all threads, or by the first warp of the first block of the row; only that block has to know the token.
  WL_DEVICE void finish(int64_t row, int token) const {
    if (row_part() != 0 || threadIdx.x != 0) return;
    tokens[row * tokens_stride] = token == kBadRow ? 0 : token;
    valid[row] = token >= 0;
  }
};

}  // namespace warploom::sampling
