// The tokens of a row that arrive first, with their exact times: for draws that not every token of the row can win.
//
// A thread knows the best key of its part of the row, and batches that may hold a quad in time are looked at again. Every block
// of the row gets all of the row's arrivals.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

struct alignas(16) TokenArrival {
  double time;
  float value;
  int token;
};

struct ArrivalStorage {
  static constexpr int kBatches = 256;  // of a block, that may have a quad that arrives in time
  static constexpr int kTokens = 256;   // of the row, that do: a region for each block
  TokenArrival regions[kTokens];
  union {
    int batches[kBatches];
    TokenArrival tokens[kTokens];  // of all regions
  };
  int batch_count;
  int token_count;
  uint64_t arrived;  // mbarrier that counts the bytes of `regions`
  uint32_t phase;    // and its phase
};

// Of a normal number, which may be out of the range of float32.
WL_DEVICE float log2_of(double x) {
  const int high = __double2hiint(x);
  const float mantissa = float(__hiloint2double((high & 0xfffff) | 0x3ff00000, __double2loint(x)));
  return float((high >> 20) - 1023) + log2_approx(mantissa);
}

// When a quad with this key arrives.
WL_DEVICE double time_of_key(float key) { return exact_exp2(-double(key)) / kLog2e; }

template <class T, class Weights>
struct ArrivalSearch {
  ArrivalStorage& storage;
  RowReduce& reduce;
  const Weights weights;
  const Draws draws;
  float minimum;   // of the values that race
  float eligible;  // and of those that may win
  int count;       // of tokens that have been collected

  // By all threads at the start of the kernel; RowReduce, made after it, has the fence.
  WL_DEVICE static void open(ArrivalStorage& storage) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x != 0) return;
    mbarrier_init(&storage.arrived, 1);
    storage.phase = 0;
#endif
  }

  WL_DEVICE ArrivalSearch(ArrivalStorage& storage, RowReduce& reduce, const Weights& weights, const Draws& draws,
                          float minimum, float eligible)
      : storage(storage),
        reduce(reduce),
        weights(weights),
        draws(draws),
        minimum(minimum),
        eligible(eligible),
        count(0) {}

  // Collects the eligible tokens that arrive until `horizon`; false if there is no room for them. `scan` is what the thread
  // has made of its part of `share`. All threads of all blocks of the row.
  template <class Share>
  WL_DEVICE bool collect(const Share& share, const RowScan<Weights>& scan, double horizon) {
    if (threadIdx.x == 0) storage.batch_count = storage.token_count = 0;
    __syncthreads();
    const float worst = -log2_of(horizon * kLog2e) - kKeyError;
    const float shift = Weights::kFromLogits ? (scan.reference - weights.reference()) * scan.scale : 0.0f;
    for_batches_above(share, scan.contest, worst - shift, [&](int batch, bool is_sure) {
      if ((!is_sure || eligible > negative_infinity()) && !is_promising(share, batch, worst)) return;
      const int place = atomicAdd(&storage.batch_count, 1);
      if (place < ArrivalStorage::kBatches) storage.batches[place] = batch;
    });
    __syncthreads();
    const int region = ArrivalStorage::kTokens >> (__ffs(reduce.parts) - 1);
    add_tokens(share, horizon, region);
    __syncthreads();
    return receive(region);
  }

  // The first of the collected tokens for which allows(value); token -1 if there is none. By one warp, for all its lanes.
  template <class Allows>
  WL_DEVICE TokenArrival first(Allows allows) const {
    TokenArrival best{Arrival::none().quad_time, 0.0f, Arrival::none().token};
#pragma unroll 1
    for (int i = lane_id(); i < count; i += kWarpSize) {
      const TokenArrival& each = storage.tokens[i];
      const bool earlier = each.time < best.time || (each.time == best.time && each.token < best.token);
      if (earlier && allows(each.value)) best = each;
    }
    const bool is_first = is_smallest(best.time, true);
    const int token = __reduce_min_sync(kFullMask, is_first ? best.token : Arrival::none().token);
    const int lane = __ffs(__ballot_sync(kFullMask, is_first && best.token == token)) - 1;
    return {__shfl_sync(kFullMask, best.time, lane), __shfl_sync(kFullMask, best.value, lane),
            token == Arrival::none().token ? -1 : token};
  }

 private:
  // Whether a quad of the batch has a key that is no worse, and a token that may win.
  template <class Share>
  WL_DEVICE bool is_promising(const Share& share, int batch, float worst) const {
    constexpr int kQuads = kQuadsOfGroup<T>;
    float rates[kBatch * kQuads];
    log2_rates<T>(batch, draws, rates);
    bool result = false;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = batch + i * kBatchStep<T>;
      float values[kVecWidth<T>];
      values_of<T>(share.load(group), values, Weights::kFromLogits);
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        float sum = 0.0f, largest = negative_infinity();
#pragma unroll
        for (int t = 0; t < kQuad; ++t) {
          const float value = values[j * kQuad + t];
          sum += value >= minimum ? weights.approximate(value) : 0.0f;
          largest = fmaxf(largest, value);
        }
        result |= largest >= eligible && log2_approx_full(sum) + rates[i * kQuads + j] >= worst;
      }
    }
    return result;
  }

  // The tokens of batches that arrive in time, to all blocks of the row. Each token has a lane.
  template <class Share>
  WL_DEVICE void add_tokens(const Share& share, double horizon, int region) {
    constexpr int kWidth = kVecWidth<T>, kOfBatch = kBatch * kWidth, kBatchesOfWarp = kWarpSize / kOfBatch;
    const int batches = min(storage.batch_count, ArrivalStorage::kBatches);
#pragma unroll 1
    for (int i = warp_id() * kBatchesOfWarp; i < batches; i += int(blockDim.x) / kWarpSize * kBatchesOfWarp) {
      const int at = i + lane_id() / kOfBatch, lane = lane_id() % kOfBatch;
      const int group = storage.batches[min(at, batches - 1)] + lane / kWidth * kBatchStep<T>;
      const int token = group * kWidth + lane % kWidth;
      const bool inside = at < batches && token < share.row.vocab;
      const float value = inside ? Weights::value(to_float(share.token(group, lane % kWidth))) : negative_infinity();
      const double weight = inside && value >= minimum ? weights.exact(value) : 0.0;
      __syncwarp();  // lanes that a branch has parted would shuffle one by one
      double sum = weight + __shfl_xor_sync(kFullMask, weight, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      const bool races = weight > 0;  // no division by 0, which is slow
      const Arrival arrival = sampling::arrival(token, sum > 0 ? sum : 1.0, races ? weight : 1.0, draws, 0);
      const double mine = races ? arrival.token_time : Arrival::none().token_time;
      double first = fmin(mine, __shfl_xor_sync(kFullMask, mine, 1));
      first = fmin(first, __shfl_xor_sync(kFullMask, first, 2));
      const double time = arrival.quad_time + (mine > first ? mine - first : 0.0);
      if (!races || value < eligible || time > horizon) continue;
      const int place = atomicAdd(&storage.token_count, 1);
      if (place < region) send({time, value, token}, reduce.part * region + place);
    }
    __syncwarp();
  }

  WL_DEVICE void send(const TokenArrival& arrival, int slot) {
#if __CUDA_ARCH__ >= 900
    if (reduce.parts > 1) {
      const uint4 message = *reinterpret_cast<const uint4*>(&arrival);
#pragma unroll 1
      for (int part = 0; part < reduce.parts; ++part) {
        send_async(map_to_rank(&storage.regions[slot], part), message, map_to_rank(&storage.arrived, part));
      }
      return;
    }
#endif
    storage.regions[slot] = arrival;
  }

  WL_DEVICE bool receive(int region) {
    const bool fits = storage.batch_count <= ArrivalStorage::kBatches && storage.token_count <= region;
    const int sent = min(storage.token_count, region);
    const int answer = reduce.exchange(CandidateCount{fits ? sent : -1 - sent}).count;  // of the lane's block
    const bool all_fit = __all_sync(kFullMask, answer >= 0);
    const int received = answer >= 0 ? answer : -1 - answer;
    const int before = warp_prefix_sum<RowReduceStorage::kMaxParts>(received);  // of regions up to and with the lane's
    count = __shfl_sync(kFullMask, before, reduce.parts - 1);
#if __CUDA_ARCH__ >= 900
    if (reduce.parts > 1) {
      if (threadIdx.x == 0) mbarrier_expect_bytes(&storage.arrived, count * int(sizeof(TokenArrival)));
      mbarrier_wait(&storage.arrived, storage.phase);
    }
#endif
    // Together, a thread each. There are as many threads as places, at least.
    const int part = int(threadIdx.x) >> (__ffs(region) - 1), i = int(threadIdx.x) & (region - 1);
    const int end = __shfl_sync(kFullMask, before, part % kWarpSize), held = __shfl_sync(kFullMask, received, part % kWarpSize);
    if (part < reduce.parts && i < held) storage.tokens[end - held + i] = storage.regions[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) storage.phase ^= 1;  // all have waited
    return all_fit;
  }
};

}  // namespace warploom::sampling
