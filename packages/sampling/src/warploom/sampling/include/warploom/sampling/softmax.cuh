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

// The float32 output beside a row of logits. If its rows are aligned like those of the logits, four at a time.
template <class T>
struct ProbsRow {
  float* start;
  bool aligned;

  WL_DEVICE ProbsRow(float* start, const Row<T>& row) : start(start) {
    const uint64_t first = reinterpret_cast<uint64_t>(start) - uint64_t(row.lead) * sizeof(float);
    aligned = first % 16 == 0;
  }

  WL_DEVICE void store(const Row<T>& row, int index, const float (&probs)[Row<T>::kWidth]) const {
    float* pointer = start + row.first_element(index);
    if (aligned && row.is_whole(index)) {
#pragma unroll
      for (int i = 0; i < Row<T>::kWidth; i += 4) {
        store_global(pointer + i, Vec<float, 4>{probs[i], probs[i + 1], probs[i + 2], probs[i + 3]});
      }
      return;
    }
    const int first = row.first_element(index);
#pragma unroll
    for (int i = 0; i < Row<T>::kWidth; ++i) {
      if (first + i >= 0 && first + i < row.vocab) pointer[i] = probs[i];
    }
  }
};

// One block's part of one row.
template <class Config>
struct SoftmaxBlock {
  using T = typename Config::In;
  static constexpr int kVectors = Config::kVectors;  // of a thread, in registers at once

  Row<T> row;
  ProbsRow<T> probs;
  Slice slice;
  float scale;

  WL_DEVICE SoftmaxBlock(const SoftmaxParams& params, int64_t index, int part, int parts)
      : row(static_cast<const T*>(params.logits) + index * params.logits_stride, params.vocab),
        probs(params.probs + index * params.probs_stride, row),
        slice(row.vectors(), part, parts) {
    const float* temperature = params.temperature;
    scale = exponent_scale(temperature ? temperature[index * params.temperature_stride] : params.temperature_value);
  }

  template <bool kReread>
  WL_DEVICE void load(Packed (&vectors)[kVectors], int first) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * int(blockDim.x);
      vectors[v] = index < slice.end ? row.template load<kReread>(index) : Row<T>::nothing();
    }
  }

  WL_DEVICE void write(const Packed (&vectors)[kVectors], int first, const SoftmaxStats& stats) const {
    const float shift = stats.shift();
    const float norm = stats.sum == 0 ? 0.0f : 1.0f / stats.sum;  // 0 for a row of -inf
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * int(blockDim.x);
      if (index >= slice.end) continue;
      float x[Row<T>::kWidth];
      unpack<T>(vectors[v], x);
#pragma unroll
      for (float& value : x) value = exp2_approx((value - shift) * scale) * norm;
      probs.store(row, index, x);
    }
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, Config::kBlocksPerSm)
    softmax_kernel(const __grid_constant__ SoftmaxParams params) {
  using Block = SoftmaxBlock<Config>;
  __shared__ SoftmaxScratch scratch;
  const int parts = row_parts();
  const int part = row_part();
#if __CUDA_ARCH__ >= 900
  if (parts > 1) cluster_arrive();  // completed in reduce_row, behind the loads
#endif
  const Block block(params, blockIdx.x / parts, part, parts);
  const int begin = block.slice.begin + int(threadIdx.x);
  const int step = int(blockDim.x) * Block::kVectors;
  Packed vectors[Block::kVectors];
  SoftmaxStats stats = SoftmaxStats::none();

  if constexpr (Config::kResident) {
    block.template load<false>(vectors, begin);
    accumulate<typename Config::In>(stats, vectors, block.scale);
  } else {
    for (int first = begin; first < block.slice.end; first += step) {
      block.template load<true>(vectors, first);
      accumulate<typename Config::In>(stats, vectors, block.scale);
    }
  }

  stats = reduce_row(stats, block.scale, scratch, part, parts);

  if constexpr (Config::kResident) {
    block.write(vectors, begin, stats);
  } else {
    for (int first = begin; first < block.slice.end; first += step) {
      block.template load<false>(vectors, first);
      block.write(vectors, first, stats);
    }
  }
}

}  // namespace warploom::sampling
