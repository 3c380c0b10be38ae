// The k largest values of each row and where they are: exact, equal values in order of their tokens.
//
// For a k of some hundreds the candidates (`candidates.cuh`) are brought into order by comparing each with all others. For
// larger ones, and where too many tokens could be among the k largest, the k-th value is found first (`threshold.cuh`), then
// the tokens that are not smaller are collected, and sorted.
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
  int key_bytes;  // of dynamic shared memory before the keys of the tokens not smaller than the k-th
  int key_count;  // for which there is room: a power of two, or 0
};

struct TopKStorage {
  RowReduceStorage reduce;
  ThresholdStorage threshold;
  CandidateStorage candidates;
  uint64_t landed[kShareStages];
  uint64_t arrived;
  int warps[kWarpSize];
  uint32_t collected;
};

// Descending order, by all threads of a block. `count` is a power of two.
template <int kThreads>
WL_DEVICE void sort_keys(uint64_t* keys, int count) {
#pragma unroll 1
  for (int size = 2; size <= count; size *= 2) {
#pragma unroll 1
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < count / 2; pair += kThreads) {
        const int low = pair / step * step * 2 + pair % step;
        const uint64_t a = keys[low], b = keys[low + step];
        if ((a < b) == ((low & size) == 0)) keys[low] = b, keys[low + step] = a;
      }
    }
  }
  __syncthreads();
}

template <class Config>
struct TopKRow {
  using T = typename Config::In;
  using Share = RowShare<T, Config::kResident>;

  const TopKParams& params;
  TopKStorage& storage;
  RowReduce& reduce;
  Share& share;

  // For all threads of the row's blocks; the first writes.
  WL_DEVICE void run(Packed* held) {
    const Contest largest = largest_batches<LogitWeights>(share);
    const float maximum = reduce(RowMaximum{largest.best}).value;
    uint64_t* keys = reinterpret_cast<uint64_t*>(held);  // where the share was
    float lowest = negative_infinity();
    if (maximum == maximum && params.k <= CandidateStorage::kCapacity) {
      lowest = reached_by(params.k, maximum, largest.best, reduce);
      const int count = collect_candidates<LogitWeights>(share, reduce, lowest, largest, storage.candidates,
                                                         &storage.arrived, keys);
      if (count != kTooMany) {
        if (share.part == 0) write_by_rank(keys, count);
        return;
      }
    }
    const double target = params.k;
    const Threshold threshold = find_threshold<Config::kThreads>(
        share, reduce, storage.threshold, Count<LogitWeights>(), LogitWeights::key(maximum),
        lowest, [=](double count, double) { return count >= target; });
    const int count = int(threshold.above + threshold.at);
    if (count <= params.key_count) {
      keys = reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(held) + params.key_bytes);
      collect(threshold.key, keys);
      if (share.part == 0) write_sorted(keys, int(storage.collected));  // no places beyond the row
      return;
    }
    sync_parts(share.parts);  // nobody needs the share
    if (share.part != 0) return;
    gather_by_threshold(threshold, keys);
    params.k <= CandidateStorage::kCapacity ? write_by_rank(keys, params.k) : write_sorted(keys, params.k);
  }

 private:
  // The keys not smaller than a threshold to the first block, in any order.
  WL_DEVICE void collect(uint32_t threshold, uint64_t* keys) {
    if (share.part == 0 && threadIdx.x == 0) storage.collected = 0;
    sync_parts(share.parts);
    visit_hits<LogitWeights>(
        share, [=](float value) { return ordered_with_nan(value) >= threshold; },
        [&](float value, int token) {
          const uint64_t entry = uint64_t(ordered_with_nan(value)) << 32 | (0xffffffffu - uint32_t(token));
#if __CUDA_ARCH__ >= 900
          const uint32_t place = add_cluster(map_to_rank(&storage.collected, 0), 1);
          store_cluster(map_to_rank(keys + place, 0), entry);
#else
          keys[atomicAdd(&storage.collected, 1u)] = entry;
#endif
        });
    sync_parts(share.parts);
  }

  // All above the threshold, and as many of those at it as there is room for, from the row's start on. By one block.
  WL_DEVICE void gather_by_threshold(const Threshold& threshold, uint64_t* keys) {
    const int above = int(threshold.above), lane_mask = (1 << lane_id()) - 1;
    int at = above;  // where the next one at the threshold goes
    if (threadIdx.x == 0) storage.collected = 0;
    __syncthreads();
    for (int start = 0; start < params.vocab; start += Config::kThreads) {
      const int token = start + int(threadIdx.x);
      const uint32_t key = token < params.vocab ? ordered_with_nan(to_float(share.row.load_token(token))) : 0;
      const uint64_t entry = uint64_t(key) << 32 | (0xffffffffu - uint32_t(token));
      if (key > threshold.key) keys[atomicAdd(&storage.collected, 1u)] = entry;
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
      const bool done = at >= params.k && int(storage.collected) == above;
      __syncthreads();
      if (done) break;
    }
  }

  WL_DEVICE void write(int place, uint64_t key) const {
    if (place >= params.k) return;
    const int token = candidate_token(key);
    T* values = static_cast<T*>(params.values) + row_index() * params.values_stride;
    int64_t* indices = params.indices + row_index() * params.indices_stride;
    values[place * params.value_stride] = share.row.load_token(token);
    indices[place * params.index_stride] = token;
  }

  // Every key to its place; a few keys.
  WL_DEVICE void write_by_rank(const uint64_t* keys, int count) const {
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += Config::kThreads) {
      const uint64_t key = keys[i];
      int place = 0;
#pragma unroll 4
      for (int j = 0; j < count; ++j) place += keys[j] > key;
      write(place, key);
    }
  }

  WL_DEVICE void write_sorted(uint64_t* keys, int count) const {
    const int size = count > 1 ? 1 << (32 - __clz(count - 1)) : 1;
    for (int i = count + int(threadIdx.x); i < size; i += Config::kThreads) keys[i] = 0;
    sort_keys<Config::kThreads>(keys, size);
    for (int i = threadIdx.x; i < params.k; i += Config::kThreads) write(i, keys[i]);
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
  storage.threshold.table.open();
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  const SourceRow<T> row(static_cast<const T*>(params.source) + row_index() * params.source_stride, params.token_stride,
                         params.vocab);
  RowShare<T, Config::kResident> share(row, row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  TopKRow<Config>{params, storage, reduce, share}.run(held);
}

}  // namespace warploom::sampling
