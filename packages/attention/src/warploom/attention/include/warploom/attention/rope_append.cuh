// New tokens in one pass: queries and keys turn (rope.cuh), keys and values go to their places in the paged cache (page.cuh).
#pragma once

#include "warploom/attention/page.cuh"
#include "warploom/attention/rope.cuh"

namespace warploom::attention {

// Of a query, or else of a key, which is rounded to its own type before it becomes the cache's.
template <class T, class Cache>
struct HeadInCache {
  T* query;
  Cache* key;

  template <int kWidth>
  WL_DEVICE void store(int column, const Vec<T, kWidth>& components) const {
    if (key) {
      store_global(key + column, convert<Cache>(components));
    } else {
      store_global(query + column, components);
    }
  }
};

template <class T, class Cache>
struct RopeAppendOutputs {
  const RopeOutputs<T> queries;
  Cache* keys;  // of the token
  int64_t key_stride;

  WL_DEVICE HeadInCache<T, Cache> head(int which, int number) const {
    if (which) return {nullptr, keys + number * key_stride};
    return {queries.head(0, number).out, nullptr};
  }
};

// A block for each token. `rope`: of queries and keys, of which only queries have an `out`; `append`: of keys and values.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    rope_append_kernel(const __grid_constant__ RopeParams rope, const __grid_constant__ AppendParams append) {
  using T = typename Config::T;
  using Cache = typename Config::Cache;
  constexpr int kVec = Config::kVec;
  __shared__ float2 turns[Config::kMaxPairs];
  const int64_t token = blockIdx.x;
  const Slot slot = find_slot(append, token);
  if (slot.owned) find_turns<Config>(rope, append.positions[token], turns);
  __syncthreads();
  const RopeAppendOutputs<T, Cache> outputs{{rope, token}, entry_of<Cache>(append, 0, slot), append.cache_head_stride[0]};
  if (!slot.owned) return turn_heads<Config>(rope, outputs, token, rope.heads[0], nullptr);  // padding stays as it is
  turn_heads<Config>(rope, outputs, token, rope.heads[0] + rope.heads[1], turns);
  const T* value = row_of<T>(append, 1, token);
  Cache* target = entry_of<Cache>(append, 1, slot);
  for (uint32_t vector = threadIdx.x; vector < append.row_vectors[1]; vector += Config::kThreads) {
    const auto some = Vec<T, kVec>::load_streaming(value + offset_in_token<kVec>(append, 1, vector, append.row_head_stride[1]));
    store_global(target + offset_in_token<kVec>(append, 1, vector, append.cache_head_stride[1]), convert<Cache>(some));
  }
}

}  // namespace warploom::attention
