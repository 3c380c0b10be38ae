// 16 rows of queries in the registers of a warp, their products with keys in shared memory, and the softmax over those: the
// state from which outputs are made (Milakov and Gimelshein, 2018; Dao et al., 2022, 2023).
#pragma once

#include "warploom/attention/operands.cuh"
#include "warploom/attention/variant.cuh"

namespace warploom::attention {

// The two of a warp's 16 rows that a lane has: lane / 4 and lane / 4 + 8.
struct LaneRows {
  int query[2];
  int head[2];

  // `first` is the tile's row that is the warp's first.
  WL_DEVICE static LaneRows of(const AttentionParams& params, const WorkCursor& item, int first) {
    LaneRows rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = item.tile * item.work.tile_rows + first + lane_id() / 4 + 8 * i;
      rows.query[i] = params.group_size.divide(row);
      rows.head[i] = item.head * int(params.group_size.divisor) + params.group_size.remainder(row, rows.query[i]);
    }
    return rows;
  }
};

template <class Config>
struct QueryTile {
  using T = typename Config::Query;
  using Ring = KeyValueRing<Config>;
  using Variant = typename Config::Variant;
  using Load = Operands<T, typename Config::Kv>;
  static constexpr int kSteps = ceil_div(Config::kHeadDim, 16);
  static constexpr int kColumns = ceil_div(Config::kValueDim, 16);  // of 16

  static constexpr bool kHoldsQueries = kSteps <= 8;  // else registers are too few: they are loaded for every tile of keys

  const AttentionParams& params;
  const WorkCursor& item;
  LaneRows rows;
  uint32_t q[kHoldsQueries ? kSteps : 1][4];
  float out[2 * kColumns][4] = {};
  float largest[2];  // logits times log2(e), of rows
  float sum[2] = {};  // of this lane's columns
  float scale[2];

  // Whether a query of the lane exists.
  WL_DEVICE bool exists(int i) const {
    return rows.query[i] < item.work.qo_len && item.work.qo_start + rows.query[i] < params.q_rows;
  }

  WL_DEVICE QueryTile(const AttentionParams& params, const WorkCursor& item, int first)
      : params(params), item(item), rows(LaneRows::of(params, item, first)) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = negative_infinity();
      scale[i] = params.logits_scale;
      if (params.logits_scales && exists(i)) scale[i] *= params.logits_scales[rows.head[i] * params.logits_scales_step];
      if constexpr (!Variant::kHasLogits) scale[i] *= kLog2e;
    }
    if constexpr (kHoldsQueries) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) load_queries(step, q[step]);
    }
  }

  // Takes in kKeys rows of a tile of keys and values, the first of which is row `first_row` of the ring's slot `stage` and key
  // `first_key` of the request. `is_partial`: not every query of the tile sees every key.
  template <int kKeys>
  WL_DEVICE void visit(const Ring& ring, int stage, int first_row, int first_key, bool is_partial) {
    float logits[kKeys / 8][4];
    multiply_keys(ring, stage, first_row, logits);
    scale_logits(first_key, logits);
    if (is_partial || Variant::kHasMask) hide(first_key, logits);
    raise_largest(logits);
    uint32_t weights[kKeys / 16][4];
    weigh(logits, weights);
    multiply_values(ring, stage, first_row, weights);
  }

  // Over the four lanes that share a row.
  WL_DEVICE void finish_sums() {
#pragma unroll
    for (float& mine : sum) mine = warp_reduce<4>(mine, Sum());
  }

 private:
  WL_DEVICE void load_queries(int step, uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = min(item.work.qo_start + rows.query[i], params.q_rows - 1);  // beyond the request: any, never written
      const T* from = static_cast<const T*>(params.q) + row * params.q_stride[0] + rows.head[i] * params.q_stride[1];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = step * 16 + Load::column(half);
        const bool inside = Config::kHeadDim % 16 == 0 || column < Config::kHeadDim;
        to[half * 2 + i] = inside ? *reinterpret_cast<const uint32_t*>(from + column) : 0u;
      }
    }
  }

  template <int kBlocks>
  WL_DEVICE void multiply_keys(const Ring& ring, int stage, int first_row, float (&logits)[kBlocks][4]) {
    const uint32_t keys = shared_address(ring.keys(stage));
    // Few blocks would wait for their own sums: every other step has its own.
    constexpr int kSums = kBlocks <= 2 && kHoldsQueries ? 2 : 1;
    float sums[kSums][kBlocks][4] = {};
#pragma unroll(kHoldsQueries ? kSteps : 2)
    for (int step = 0; step < kSteps; ++step) {
      float(&of_step)[kBlocks][4] = sums[step % kSums];
      uint32_t(&queries)[4] = q[kHoldsQueries ? step : 0];
      if constexpr (!kHoldsQueries) load_queries(step, queries);
#pragma unroll
      for (int block = 0; block < kBlocks; block += 2) {
        uint32_t k[4];
        Load::template load_keys<typename Ring::KeyRows>(k, keys, first_row + block * 8, step);
        multiply_add<T>(of_step[block], queries, k[0], k[1]);
        multiply_add<T>(of_step[block + 1], queries, k[2], k[3]);
      }
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) logits[block][i] = kSums == 2 ? sums[0][block][i] + sums[kSums - 1][block][i] : sums[0][block][i];
    }
  }

  template <int kBlocks>
  WL_DEVICE void multiply_values(const Ring& ring, int stage, int first_row, const uint32_t (&weights)[kBlocks][4]) {
    const uint32_t values = shared_address(ring.values(stage));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        uint32_t v[4];
        Load::template load_values<typename Ring::ValueRows>(v, values, first_row + block * 16, column);
        multiply_add<T>(out[2 * column], weights[block], v[0], v[1]);
        multiply_add<T>(out[2 * column + 1], weights[block], v[2], v[3]);
      }
    }
  }

  WL_DEVICE LogitPosition position(int first_key, int block, int i) const {
    const int row = i / 2, key = first_key + block * 8 + lane_id() % 4 * 2 + i % 2;
    return {item.request, rows.query[row], key, rows.query[row] + item.work.first_position(), rows.head[row], item.head,
            item.work.qo_len, item.work.kv_len};
  }

  template <int kBlocks>
  WL_DEVICE void scale_logits(int first_key, float (&logits)[kBlocks][4]) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& logit = logits[block][i];
        logit *= scale[i / 2];
        if constexpr (Variant::kHasLogits) {
          const LogitPosition at = position(first_key, block, i);
          if (exists(i / 2) && at.kv_idx < at.kv_len) logit = Variant::logits(params, at, logit);
          logit *= kLog2e;
        }
      }
    }
  }

  template <int kBlocks>
  WL_DEVICE void hide(int first_key, float (&logits)[kBlocks][4]) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const LogitPosition at = position(first_key, block, i);
        bool visible = at.kv_idx < at.kv_len;
        if (params.causal) visible &= at.kv_idx <= at.qo_pos;
        if (params.window_left >= 0) visible &= at.kv_idx >= at.qo_pos - params.window_left;
        if constexpr (Variant::kHasMask) visible = visible && exists(i / 2) && Variant::mask(params, at);
        if (!visible) logits[block][i] = negative_infinity();
      }
    }
  }

  // Turns logits into what 2 is raised to, relative to the largest so far.
  template <int kBlocks>
  WL_DEVICE void raise_largest(float (&logits)[kBlocks][4]) {
    float next[2], factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = negative_infinity();
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) most = fmaxf(most, fmaxf(logits[block][2 * i], logits[block][2 * i + 1]));
      most = warp_reduce<4>(most, Max());
      next[i] = fmaxf(largest[i], most);
      const float from = next[i] == negative_infinity() ? 0.0f : next[i];  // no inf - inf
      factor[i] = exp2_approx(largest[i] - from);
      largest[i] = next[i];
      sum[i] *= factor[i];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int j = 2 * i; j < 2 * i + 2; ++j) logits[block][j] -= from;
      }
    }
    if (__any_sync(kFullMask, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
      for (int column = 0; column < 2 * kColumns; ++column) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[column][i] *= factor[i / 2];
      }
    }
  }

  template <int kBlocks>
  WL_DEVICE void weigh(const float (&logits)[2 * kBlocks][4], uint32_t (&weights)[kBlocks][4]) {
#pragma unroll
    for (int block = 0; block < 2 * kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float low = exp2_approx(logits[block][2 * i]), high = exp2_approx(logits[block][2 * i + 1]);
        sum[i] += low + high;
        weights[block / 2][block % 2 * 2 + i] = pack_operand<T>(low, high);
      }
    }
  }
};

}  // namespace warploom::attention
