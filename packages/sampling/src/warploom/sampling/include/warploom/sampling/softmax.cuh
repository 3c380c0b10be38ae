// Softmax with temperature.
//
// The blocks of a cluster divide a row; one block does it alone where it is short or the hardware has no clusters. With
// kResident each thread keeps its share of the row in registers between the two stages, so that device memory is read
// exactly once: 8 blocks of 512 threads hold 131072 float32 or 262144 16-bit logits. Longer rows are read again, from L2.
#pragma once

#include "warploom/global_store.cuh"
#include "warploom/sampling/softmax_stats.cuh"

namespace warploom::sampling {

struct SoftmaxParams {
  const void* logits;        // [rows, vocab]
  float* probs;              // [rows, vocab]
  const float* temperature;  // [rows], or null
  int64_t logits_stride;     // of rows, in elements
  int64_t probs_stride;
  int64_t temperature_stride;
  float temperature_value;  // of all rows if temperature is null
  int vocab;
};

// One block's part of one row.
template <class Config>
struct SoftmaxBlock {
  using T = typename Config::In;
  static constexpr int kWidth = Row<T>::kWidth;
  static constexpr int kVectors = Config::kVectors;  // of a thread, in registers at once

  Row<T> row;
  Slice slice;
  float* probs;
  int edge;           // element of the row outside its vectors that this thread handles, or -1
  float temperature;  // loaded ahead of the row; what follows from it is computed behind the row's loads

  WL_DEVICE SoftmaxBlock(const SoftmaxParams& params, int64_t index, int part, int parts)
      : row(static_cast<const T*>(params.logits) + index * params.logits_stride, params.vocab),
        slice(row.vectors, part, parts),
        probs(params.probs + index * params.probs_stride),
        edge(part == 0 ? row.edge_element(threadIdx.x) : -1) {
    const float* per_row = params.temperature;
    temperature = per_row ? per_row[index * params.temperature_stride] : params.temperature_value;
  }

  WL_DEVICE float load_edge() const { return edge < 0 ? negative_infinity() : to_float(row.start[edge]); }

  template <bool kReread>
  WL_DEVICE void load(Packed (&vectors)[kVectors], int first) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * int(blockDim.x);
      vectors[v] = nothing<T>();
      if (index < slice.end) vectors[v] = row.template load<kReread>(index);
    }
  }

  WL_DEVICE void store(int index, const float (&x)[kWidth]) const {
    float* pointer = probs + row.head + index * kWidth;
    if (reinterpret_cast<uint64_t>(pointer) % 16 == 0) {  // the same for the whole row
#pragma unroll
      for (int i = 0; i < kWidth; i += 4) store_global(pointer + i, Vec<float, 4>{x[i], x[i + 1], x[i + 2], x[i + 3]});
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) pointer[i] = x[i];
    }
  }

  WL_DEVICE void write(const Packed (&vectors)[kVectors], int first, float shift, float scale, float norm) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * int(blockDim.x);
      if (index >= slice.end) continue;
      float x[kWidth];
      unpack<T>(vectors[v], x);
#pragma unroll
      for (float& value : x) value = exp2_approx((value - shift) * scale) * norm;
      store(index, x);
    }
  }

  WL_DEVICE void write_edge(float x, float shift, float scale, float norm) const {
    if (edge >= 0) probs[edge] = exp2_approx((x - shift) * scale) * norm;
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, Config::kBlocksPerSm)
    softmax_kernel(const __grid_constant__ SoftmaxParams params) {
  using T = typename Config::In;
  using Block = SoftmaxBlock<Config>;
  __shared__ SoftmaxExchange exchange;
  const int parts = row_parts();
  const int part = row_part();
  exchange.open(parts);

  const Block block(params, row_index(), part, parts);
  const int begin = block.slice.begin + int(threadIdx.x);
  const int step = int(blockDim.x) * Block::kVectors;
  Packed vectors[Block::kVectors];
  float edge = block.load_edge();
  float scale;
  SoftmaxStats stats = SoftmaxStats::none();

  if constexpr (Config::kResident) {
    block.template load<false>(vectors, begin);
    scale = exponent_scale(block.temperature);
    accumulate<T>(stats, vectors, edge, scale);
  } else {
    scale = exponent_scale(block.temperature);
    for (int first = begin; first < block.slice.end; first += step) {
      block.template load<true>(vectors, first);
      accumulate<T>(stats, vectors, first == begin ? edge : negative_infinity(), scale);
    }
  }

  stats = reduce_row(stats, scale, exchange, part, parts);
  const float shift = stats.shift();
  const float norm = stats.sum == 0 ? 0.0f : 1.0f / stats.sum;  // 0 for a row of -inf

  block.write_edge(edge, shift, scale, norm);
  if constexpr (Config::kResident) {
    block.write(vectors, begin, shift, scale, norm);
  } else {
    for (int first = begin; first < block.slice.end; first += step) {
      block.template load<false>(vectors, first);
      block.write(vectors, first, shift, scale, norm);
    }
  }
}

}  // namespace warploom::sampling
