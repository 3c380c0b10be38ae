// 16 rows of queries in the registers of a warp, and their products with keys and values in shared memory.
#pragma once

#include "warploom/attention/operands.cuh"
#include "warploom/attention/result.cuh"
#include "warploom/attention/rotation.cuh"
#include "warploom/attention/softmax_rows.cuh"

namespace warploom::attention {

// Of an item, the rows from `first` on, for a `RowRotation`.
template <class Config>
struct QueriesToTurn {
  using T = typename Config::Query;
  using Writer = ResultWriter<Config>;

  const AttentionParams& params;
  const WorkCursor& item;
  int first;

  WL_DEVICE int position(int row) const {
    return int(place(row).row) - item.work.qo_start + item.work.first_position();
  }
  template <int kCount>
  WL_DEVICE Vec<uint32_t, kCount> load(int row, int column) const {
    const auto at = place(row);
    const int64_t offset = min(at.row, int64_t(params.q_rows - 1)) * params.q_stride[0] + at.head * params.q_stride[1];
    const T* from = static_cast<const T*>(params.q) + offset;
    Vec<uint32_t, kCount> pairs;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pairs[i] = *reinterpret_cast<const uint32_t*>(from + column + 2 * i);
    return pairs;
  }

 private:
  WL_DEVICE typename Writer::Place place(int row) const { return Writer{params, item}.place(first + row); }
};

// Whether queries become another type for their products with keys, each row by a power of 2 that there is room for.
template <class Config, class KeyValues>
constexpr bool kConvertsQueries = !is_same_v<ProductType<typename Config::Query, typename KeyValues::KeyOperand>, typename Config::Query>;

// `KeyValues`: where keys and values lie. `Queries`: whether queries lie in shared memory.
template <class Config, class KeyValues = KeyValueRing<Config>, class Queries = typename Config::Rotation::Queries>
struct QueryTile : SoftmaxRows<Config, kConvertsQueries<Config, KeyValues>>, Queries {
  static constexpr bool kConverts = kConvertsQueries<Config, KeyValues>;
  using Softmax = SoftmaxRows<Config, kConverts>;
  using T = typename Config::Query;
  using KeyProduct = ProductType<T, typename KeyValues::KeyOperand>;
  using ValueProduct = ProductType<T, typename Config::Kv>;
  using Load = Operands<ValueProduct, typename Config::Kv>;
  using LoadKeys = Operands<KeyProduct, typename KeyValues::KeyOperand>;
  static constexpr bool kInterleaved = Load::kInterleaved;
  static constexpr int kSteps = ceil_div(Config::kHeadDim, 16);
  static constexpr int kColumns = ceil_div(Config::kValueDim, 16);  // of 16
  static constexpr bool kHoldsQueries = kSteps <= 8;  // else registers are too few: they are loaded for every tile of keys
  static constexpr float kProductScale = Config::Rotation::kScale * Config::Rotation::kScale;

  uint32_t q[kHoldsQueries ? kSteps : 1][4];
  float out[2 * kColumns][4] = {};
  float row_scale[kConverts ? 2 : 1];  // what products are too small by, as units know too

  WL_DEVICE QueryTile(const AttentionParams& params, const WorkCursor& item) : Softmax(params) {
    this->start(item);
    if constexpr (kHoldsQueries && !Queries::kAreShared) {
      const LaneRows rows = this->rows();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) load_queries(rows, step, q[step]);
      if constexpr (kConverts) convert_held();
    } else if constexpr (kConverts) {
      find_row_scales();
    }
  }

  // Instead of queries as they are: 16 rows in shared memory. They stay there if registers are too few for them.
  WL_DEVICE void take_queries(const uint8_t* rows) {
    this->query_rows = shared_address(rows);
    if constexpr (kHoldsQueries) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) load_shared_queries(step, q[step]);
    }
  }

  // Takes in kKeys rows of a tile of keys and values, the first of which is row `first_row` of the ring's slot `stage` and key
  // `first_key` of the request.
  template <int kKeys>
  WL_DEVICE void visit(const KeyValues& ring, int stage, int first_row, int first_key, bool is_partial) {
    float logits[kKeys / 8][4];
    uint32_t weights[kKeys / 16][4];
    multiply_keys(ring, stage, first_row, logits);
    weigh_keys(first_key, is_partial, logits, weights);
    multiply_values(ring, stage, first_row, weights);
  }

  // The steps of visit(): products with keys,
  template <int kBlocks>
  WL_DEVICE void multiply_keys(const KeyValues& ring, int stage, int first_row, float (&logits)[kBlocks][4]) {
    const uint32_t keys = shared_address(ring.key_operands(stage));
    // Few blocks would wait for their own sums: every other step has its own.
    constexpr int kSums = kBlocks <= 2 && kHoldsQueries && !kConverts ? 2 : 1;
    float sums[kSums][kBlocks][4] = {};
#pragma unroll(kHoldsQueries ? kSteps : 2)
    for (int step = 0; step < kSteps; ++step) {
      float(&of_step)[kBlocks][4] = sums[step % kSums];
      uint32_t(&queries)[4] = q[kHoldsQueries ? step : 0];
      if constexpr (!kHoldsQueries && Queries::kAreShared) load_shared_queries(step, queries);
      if constexpr (!kHoldsQueries && !Queries::kAreShared) load_queries(this->rows(), step, queries);
      if constexpr (!kHoldsQueries && kConverts) convert(queries);
#pragma unroll
      for (int block = 0; block < kBlocks; block += 2) {
        uint32_t k[4];
        using Rows = typename KeyValues::KeyOperandRows;
        LoadKeys::template load_keys<Rows>(k, keys + Rows::rows_on(first_row + block * 8), step);
        multiply_add<KeyProduct>(of_step[block], queries, k[0], k[1]);
        multiply_add<KeyProduct>(of_step[block + 1], queries, k[2], k[3]);
      }
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) logits[block][i] = kSums == 2 ? sums[0][block][i] + sums[kSums - 1][block][i] : sums[0][block][i];
      if constexpr (kProductScale != 1.0f) {
#pragma unroll
        for (float& logit : logits[block]) logit *= 1.0f / kProductScale;
      }
    }
  }

  // what they weigh, as an operand,
  template <int kSteps>
  WL_DEVICE void weigh_keys(int first_key, bool is_partial, float (&logits)[2 * kSteps][4], uint32_t (&weights)[kSteps][4]) {
    this->prepare(first_key, is_partial, logits);
    float factor[2];
    this->weigh(logits, factor);
    this->rescale(out, factor);
    WeightOperands<ValueProduct>::pack(logits, weights);
  }

  // and their values, times that.
  template <int kBlocks>
  WL_DEVICE void multiply_values(const KeyValues& ring, int stage, int first_row, const uint32_t (&weights)[kBlocks][4]) {
    const uint32_t values = shared_address(ring.values(stage));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        uint32_t v[4];
        using Rows = typename KeyValues::ValueRows;
        Load::template load_values<Rows>(v, values + Rows::rows_on(first_row + block * 16), column);
        multiply_add<ValueProduct>(out[2 * column], weights[block], v[0], v[1]);
        multiply_add<ValueProduct>(out[2 * column + 1], weights[block], v[2], v[3]);
      }
    }
  }

 private:
  // `row_scale` from the largest components that the lane has of its rows.
  WL_DEVICE void set_row_scales(float (&most)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // 2^-100 and less are too small for what they become to matter, and the inverse of 2^127 has no room in a float.
      const float of_row = fminf(fmaxf(warp_reduce<4>(most[i], Max()), 0x1p-100f), 0x1p126f);
      row_scale[i] = __uint_as_float(__float_as_uint(of_row) & 0x7f800000);
      // Not 0, and not infinite: hidden logits are -inf, and products may be 0.
      this->unit[i] = fminf(fmaxf(this->unit[i] * row_scale[i], 0x1p-126f), 0x1p127f);
    }
  }
  WL_DEVICE static void add_largest(const uint32_t (&queries)[4], float (&most)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_operand<T>(queries[i]);
      most[i % 2] = fmaxf(most[i % 2], fmaxf(fabsf(pair.x), fabsf(pair.y)));
    }
  }
  WL_DEVICE void convert(uint32_t (&queries)[4]) const {
    float factor[2];  // the inverse of a power of 2
#pragma unroll
    for (int i = 0; i < 2; ++i) factor[i] = __uint_as_float((254u << 23) - __float_as_uint(row_scale[i]));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_operand<T>(queries[i]);
      queries[i] = pack_operand<KeyProduct>(pair.x * factor[i % 2], pair.y * factor[i % 2]);
    }
  }
  WL_DEVICE void convert_held() {
    float most[2] = {0.0f, 0.0f};
#pragma unroll
    for (auto& of_step : q) add_largest(of_step, most);
    set_row_scales(most);
#pragma unroll
    for (auto& of_step : q) convert(of_step);
  }
  WL_DEVICE void find_row_scales() {
    float most[2] = {0.0f, 0.0f};
    const LaneRows rows = this->rows();
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      load_queries(rows, step, q[0]);
      add_largest(q[0], most);
    }
    set_row_scales(most);
  }

  WL_DEVICE void load_shared_queries(int step, uint32_t (&to)[4]) const {
    using Rows = typename Queries::QueryRows;
    load_matrices(to, this->query_rows + Rows::onwards(Rows::offset(lane_id() % 16, lane_id() / 16), 2 * step));
  }

  WL_DEVICE void load_queries(const LaneRows& rows, int step, uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = min(this->item->work.qo_start + rows.query[i], this->params.q_rows - 1);  // beyond the request: any, never written
      const T* from = static_cast<const T*>(this->params.q) + row * this->params.q_stride[0] + rows.head[i] * this->params.q_stride[1];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = step * 16 + LoadKeys::column(half);
        const bool inside = Config::kHeadDim % 16 == 0 || column < Config::kHeadDim;
        to[half * 2 + i] = inside ? *reinterpret_cast<const uint32_t*>(from + column) : 0u;
      }
    }
  }
};

}  // namespace warploom::attention
