// The softmax over the logits of 16 rows that a warp has, as a matrix product leaves them: states from which outputs are made
// (Milakov and Gimelshein, 2018; Dao et al., 2022, 2023).
#pragma once

#include "warploom/attention/item.cuh"
#include "warploom/attention/variant.cuh"
#include "warploom/mma.cuh"

namespace warploom::attention {

// The two of a warp's 16 rows that a lane has: lane / 4 and lane / 4 + 8.
struct LaneRows {
  int query[2];
  int head[2];

  WL_DEVICE static LaneRows of(const AttentionParams& params, const WorkCursor& item, int first) {
    LaneRows rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow row = TileRow::of(params, item, first + lane_id() / 4 + 8 * i);
      rows.query[i] = row.query, rows.head[i] = row.head;
    }
    return rows;
  }
};

// Exponents that the largest may fall behind before it is raised: weights stay below 2^8, and what was added up before is seldom
// multiplied (as in FlashAttention-4).
constexpr float kSlack = 8.0f;

// Weights as operands, whose keys lie in the order that the sums of a product have.
template <class Operand>
struct WeightOperands {
  static constexpr float kMost = 0.0f;          // exponent of the largest weight when it is found
  static constexpr float kMostAdded = 4096.0f;  // what a lane's weights of a row may add up to: no problem for float16

  template <int kBlocks>
  WL_DEVICE static void pack(const float (&weights)[2 * kBlocks][4], uint32_t (&to)[kBlocks][4]) {
#pragma unroll
    for (int block = 0; block < 2 * kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to[block / 2][block % 2 * 2 + i] = pack_operand<Operand>(weights[block][2 * i], weights[block][2 * i + 1]);
      }
    }
  }
};

// `kScalesRows`: products of each row are too small by a power of 2 of its own.
template <class Config, bool kScalesRows = false>
struct SoftmaxRows {
  using T = typename Config::Query;
  using Variant = typename Config::Variant;

  const AttentionParams& params;
  const WorkCursor* item;
  float largest[2];  // exponents, of rows: at most kSlack are larger
  float sum[2];      // of this lane's columns
  float unit[kScalesRows ? 2 : 1];  // from logits to exponents of 2, not negative; of products, where they are scaled first

  // Not kept: few tiles of keys need them.
  WL_DEVICE LaneRows rows() const { return LaneRows::of(params, *item, first_row()); }

  // Scales of one head each may be negative, or zero; hidden logits are -inf.
  WL_DEVICE bool scales_first() const { return Variant::kHasLogits || params.logits_scales || !(params.logits_scale > 0.0f); }

  WL_DEVICE explicit SoftmaxRows(const AttentionParams& params) : params(params) {}

  WL_DEVICE void start(const WorkCursor& of_warp) {
    item = &of_warp;
    unit[0] = scales_first() ? kLog2e : params.logits_scale * kLog2e;
    if constexpr (kScalesRows) unit[1] = unit[0];
#pragma unroll
    for (int i = 0; i < 2; ++i) largest[i] = negative_infinity(), sum[i] = 0.0f;
  }

  // Sums of products become logits, or stay a positive factor from them. `is_partial`: not every query of the tile sees every key.
  template <int kBlocks>
  WL_DEVICE void prepare(int first_key, bool is_partial, float (&logits)[kBlocks][4]) const {
    if (scales_first()) scale_logits(first_key, logits);
    if (is_partial || Variant::kHasMask) hide(first_key, logits);
  }

  // Turns logits into weights relative to `largest`. What was added up before has to be multiplied by `factor`.
  template <int kBlocks>
  WL_DEVICE void weigh(float (&logits)[kBlocks][4], float (&factor)[2]) {
    raise_largest(logits, factor);
    float added[2];
    exponentiate(logits, added);
    add(added);
  }

  // The steps of weigh(): raises `largest` where it is too small for these logits,
  template <int kBlocks>
  WL_DEVICE void raise_largest(const float (&logits)[kBlocks][4], float (&factor)[2]) {
    constexpr int kChains = kBlocks < 2 ? 2 : 4;  // so that a maximum does not wait for the one before
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most[kChains];
#pragma unroll
      for (int j = 0; j < 2 * kBlocks; ++j) {
        const float here = logits[j / 2][2 * i + j % 2];
        most[j % kChains] = j < kChains ? here : fmaxf(most[j % kChains], here);
      }
#pragma unroll
      for (int j = 1; j < kChains; ++j) most[0] = fmaxf(most[0], most[j]);
      const float of_row = warp_reduce<4>(most[0], Max());
      const float seen = of_row * unit_of(i);
      const float next = seen > largest[i] + kSlack ? seen - WeightOperands<T>::kMost : largest[i];
      factor[i] = exp2_approx(largest[i] - finite(next));
      largest[i] = next;
      sum[i] *= factor[i];
    }
  }

  // makes weights, whose sums over the lane's columns are `added`,
  template <int kBlocks>
  WL_DEVICE void exponentiate(float (&logits)[kBlocks][4], float (&added)[2]) const {
    const float from[2] = {finite(largest[0]), finite(largest[1])}, units[2] = {unit_of(0), unit_of(1)};
#pragma unroll
    for (auto& block : logits) {
#pragma unroll
      for (int i = 0; i < 4; ++i) block[i] = exp2_approx(fmaf(block[i], units[i / 2], -from[i / 2]));
    }
    add_up(logits, added);
  }

  // and counts them in.
  WL_DEVICE void add(const float (&added)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] += added[i];
  }

  // What was added up before.
  template <int kBlocks>
  WL_DEVICE static void rescale(float (&out)[kBlocks][4], const float (&factor)[2]) {
    if (!__any_sync(kFullMask, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (auto& block : out) {
#pragma unroll
      for (int i = 0; i < 4; ++i) block[i] *= factor[i / 2];
    }
  }

  // Takes in the state of a lane that has the same rows and has seen other keys. What each has added up has to be multiplied.
  WL_DEVICE void merge(const float (&other_largest)[2], const float (&other_sum)[2], float (&mine)[2], float (&other)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float most = fmaxf(largest[i], other_largest[i]);
      mine[i] = exp2_approx(largest[i] - finite(most)), other[i] = exp2_approx(other_largest[i] - finite(most));
      largest[i] = most;
      sum[i] = sum[i] * mine[i] + other_sum[i] * other[i];
    }
  }

  // Over the four lanes that share a row.
  WL_DEVICE void finish_sums() {
#pragma unroll
    for (float& mine : sum) mine = warp_reduce<4>(mine, Sum());
  }

 private:
  WL_DEVICE float unit_of(int i) const {
    if constexpr (!kScalesRows) return unit[0];
    return scales_first() ? kLog2e : unit[i];
  }

  // Of a tile of more rows than a warp has, each warp has others; of one that has few, those of the next warpgroup the same again.
  WL_DEVICE int first_row() const {
    constexpr int kGroupRows = 4 * kWarpRows;
    if (item->work.tile_rows <= kWarpRows) return 0;
    return rows_of(params, *item) > kGroupRows ? warp_id() * kWarpRows : warp_id() * kWarpRows % kGroupRows;
  }

  // Sums start from a zero that depends on the last weights. Else each addition would come right behind its exponential, and
  // hold up the next one for as long as that takes.
  template <int kBlocks>
  WL_DEVICE static void add_up(const float (&weights)[kBlocks][4], float (&sums)[2]) {
    const float(&last)[4] = weights[kBlocks - 1];
    const float zero = fminf(fminf(fminf(last[0], last[1]), fminf(last[2], last[3])), 0.0f);
    float added[4] = {zero, zero, zero, zero};
#pragma unroll
    for (const auto& block : weights) {
#pragma unroll
      for (int i = 0; i < 4; ++i) added[i] += block[i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[i] = added[2 * i] + added[2 * i + 1];
  }

  // No inf - inf.
  WL_DEVICE static float finite(float most) { return most == negative_infinity() ? 0.0f : most; }

  // Of a logit, or of one that exists where this one does not: what variants make of it does not matter, but they may read there.
  WL_DEVICE LogitPosition position(const LaneRows& rows, int first_key, int block, int i) const {
    const RequestWork& work = item->work;
    const int queries = min(work.qo_len, params.q_rows - work.qo_start);
    const int query = max(min(rows.query[i / 2], queries - 1), 0);
    const int key = min(first_key + block * 8 + lane_id() % 4 * 2 + i % 2, work.kv_len - 1);
    return {item->request, query, key, query + work.first_position(), rows.head[i / 2], item->head, work.qo_len, work.kv_len};
  }

  template <int kBlocks>
  WL_DEVICE void scale_logits(int first_key, float (&logits)[kBlocks][4]) const {
    const LaneRows rows = this->rows();
    float scale[2] = {params.logits_scale, params.logits_scale};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (params.logits_scales) scale[i] *= params.logits_scales[rows.head[i] * params.logits_scales_step];
      if constexpr (kScalesRows) scale[i] *= unit[i] * kLn2;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& logit = logits[block][i];
        logit *= scale[i / 2];
        if constexpr (Variant::kHasLogits) {
          logit = Variant::logits(params, position(rows, first_key, block, i), logit);
        }
      }
    }
  }

  template <int kBlocks>
  WL_DEVICE void hide(int first_key, float (&logits)[kBlocks][4]) const {
    const LaneRows rows = this->rows();
    const int first_column = first_key + lane_id() % 4 * 2;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int query = rows.query[row] + item->work.first_position();
      const int end = (params.causal ? min(query + 1, item->work.kv_len) : item->work.kv_len) - first_column;
      const int begin = (params.window_left >= 0 ? max(query - params.window_left, 0) : 0) - first_column;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 2 * row; i < 2 * row + 2; ++i) {
          const int column = block * 8 + i % 2;
          bool visible = column >= begin && column < end;
          if constexpr (Variant::kHasMask) {
            visible &= Variant::mask(params, position(rows, first_key, block, i));
          }
          if (!visible) logits[block][i] = negative_infinity();
        }
      }
    }
  }
};

}  // namespace warploom::attention
