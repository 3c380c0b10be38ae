// The k largest values of each row and where they are, for a k of some hundreds: exact, equal values in order of their tokens.
//
// The candidates (`candidates.cuh`) are brought into order by comparing each with all others. Rows of which too many tokens
// could be among the k largest, those with many equal values, go by their exact threshold.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/parts.cuh"
#include "warploom/sampling/row_share.cuh"
#include "warploom/sampling/threshold.cuh"

namespace warploom::sampling {

struct TopKParams {
  const void* source;      // [rows, vocab]
  void* values;            // [rows, k], of the source's type
  int64_t* indices;        // [rows, k]
  int64_t source_stride;   // of rows, in elements
  int64_t token_stride;    // of tokens of a row
  int64_t values_stride;   // of rows
  int64_t value_stride;    // of values of a row
  int64_t indices_stride;
  int64_t index_stride;
  int vocab;
  int k;
};

struct TopKStorage {
  RowReduceStorage reduce;
  union {
    ThresholdStorage threshold;
    CandidateStorage candidates;
  };
  uint64_t landed[kShareStages];
  uint64_t arrived;
  int warps[kWarpSize];
  int larger;
};

template <class Config>
struct TopKRow {
  using T = typename Config::In;
  using Share = RowShare<T, Config::kResident>;

  const TopKParams& params;
  TopKStorage& storage;
  RowReduce& reduce;
  Share& share;

  // The keys to choose from, in any order; 0 for blocks that have nothing to do.
  WL_DEVICE int find_keys(uint64_t* keys) {
    const RowMaximum largest = largest_value<LogitWeights>(share, true);
    const float maximum = reduce(largest).value;
    float minimum = negative_infinity();
    if (maximum == maximum) {
      minimum = reached_by(params.k, maximum, largest.value, reduce);
      const int count = collect_candidates<LogitWeights>(share, reduce, minimum, largest.value, storage.candidates,
                                                         &storage.arrived, keys);
      if (count != kTooMany) return count;
    }
    const uint64_t target = params.k;
    const Threshold threshold = find_threshold<LogitWeights, Config::kThreads>(
        share, CountAmount(), minimum, [=](uint64_t count) { return count >= target; }, storage.threshold);
    if (share.part != 0) return 0;
    gather_by_threshold(threshold, keys);
    return params.k;
  }

  // All above the threshold, and as many of those at it as there is room for, from the row's start on. By one block.
  WL_DEVICE void gather_by_threshold(const Threshold& threshold, uint64_t* keys) {
    const int above = int(threshold.above), lane_mask = (1 << lane_id()) - 1;
    int at = above;  // where the next one at the threshold goes
    if (threadIdx.x == 0) storage.larger = 0;
    __syncthreads();
    for (int start = 0; start < params.vocab; start += Config::kThreads) {
      const int token = start + int(threadIdx.x);
      const uint32_t key = token < params.vocab ? ordered_with_nan(to_float(share.row.load_token(token))) : 0;
      const uint64_t entry = uint64_t(key) << 32 | (0xffffffffu - uint32_t(token));
      if (key > threshold.key) keys[atomicAdd(&storage.larger, 1)] = entry;
      const uint32_t equal = __ballot_sync(kFullMask, key == threshold.key);
      if (lane_id() == 0) storage.warps[warp_id()] = __popc(equal);
      __syncthreads();
      int before = at, all = 0;
      for (int warp = 0; warp < Config::kThreads / kWarpSize; ++warp) {
        before += warp < warp_id() ? storage.warps[warp] : 0;
        all += storage.warps[warp];
      }
      const int place = before + __popc(equal & lane_mask);
      if (key == threshold.key && place < params.k) keys[place] = entry;
      at += all;
      const bool done = at >= params.k && storage.larger == above;
      __syncthreads();
      if (done) break;
    }
  }

  // Every key to its place.
  WL_DEVICE void write(const uint64_t* keys, int count, int64_t row) const {
    T* values = static_cast<T*>(params.values) + row * params.values_stride;
    int64_t* indices = params.indices + row * params.indices_stride;
    for (int i = threadIdx.x; i < count; i += Config::kThreads) {
      const uint64_t key = keys[i];
      int place = 0;
#pragma unroll 4
      for (int j = 0; j < count; ++j) place += keys[j] > key;
      if (place >= params.k) continue;
      const int token = candidate_token(key);
      values[place * params.value_stride] = share.row.load_token(token);
      indices[place * params.index_stride] = token;
    }
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    topk_kernel(const __grid_constant__ TopKParams params) {
  using T = typename Config::In;
  extern __shared__ __align__(128) Packed held[];
  __shared__ TopKStorage storage;
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) mbarrier_init(&storage.arrived, 1);  // RowReduce has the fence
#endif
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  const SourceRow<T> row(static_cast<const T*>(params.source) + row_index() * params.source_stride, params.token_stride,
                         params.vocab);
  RowShare<T, Config::kResident> share(row, row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  TopKRow<Config> top{params, storage, reduce, share};
  uint64_t* keys = reinterpret_cast<uint64_t*>(held);
  const int count = top.find_keys(keys);
  __syncthreads();
  if (share.part == 0) top.write(keys, count, row_index());
}

}  // namespace warploom::sampling
