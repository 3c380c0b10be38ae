// Shared memory of a block of attention_hopper.cuh, and the barriers by which its warpgroups meet.
#pragma once

#include "warploom/attention/item.cuh"
#include "warploom/attention/key_value_rows.cuh"
#include "warploom/ring.cuh"
#include "warploom/swizzled_rows.cuh"
#include "warploom/sync.cuh"
#include "warploom/tma.cuh"
#include "warploom/warpgroup.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kComputingGroups = 2;
constexpr int kGroupRows = Warpgroup::kRows;
constexpr int kFewRows = kWarpRows;  // of an item, that are no work for wgmma
constexpr int kGroupWarps = Warpgroup::kWarps;
constexpr int kGroupThreads = Warpgroup::kThreads;

// Barriers beside 0, which is that of all threads.
constexpr int kTurnBarrier = 1;                                 // of each computing warpgroup, when it is its turn
constexpr int kItemBarrier = kTurnBarrier + kComputingGroups;   // of both, who have rows of an item
constexpr int kGroupBarrier = kItemBarrier + 1;                 // of each computing warpgroup

// As TMA sees them: queries and outputs are [tokens, kv_heads, group_size, dim], keys and values [pages, kv_heads, page_size, dim],
// or [1, kv_heads, rows, dim].
struct HopperMaps {
  const TensorMap* queries;
  const TensorMap* keys;
  const TensorMap* values;
  const TensorMap* outputs;
};

template <class Config>
struct HopperStorage {
  static constexpr int kStages = Config::kStages;
  static constexpr bool kHasBoxes = Config::kBoxRows > 0;
  static constexpr int kItems = Config::kItems;  // whose queries have room: that is worked on, and the next
  using Kv = typename Config::Kv;
  using Queries = SwizzledRows<kGroupRows, Config::kHeadDim, typename Config::Query>;
  using Outputs = SwizzledRows<kGroupRows, Config::kValueDim>;  // which go where queries were
  using Keys = SwizzledRows<Config::kTileKeys, Config::kHeadDim, Kv>;
  using ValuesInMemory = SwizzledRows<Config::kTileKeys, Config::kValueDim, Kv>;
  // Those of 8 bits have to lie along what products sum over, which are keys: they are turned on their way.
  static constexpr bool kIsTurned = sizeof(Kv) == 1;
  static constexpr int kUnturned = 3;  // stages before that
  using Values = conditional_t<kIsTurned, SwizzledRows<Config::kValueDim, Config::kTileKeys, Kv>, ValuesInMemory>;
  static constexpr int kGroupBytes = Queries::kBytes > Outputs::kBytes ? Queries::kBytes : Outputs::kBytes;
  static constexpr int kQueryBytes = kComputingGroups * kGroupBytes;

  typename KeyValueRows<Config>::State copies[kGroupWarps];
  WorkCursor items[kItems];
  float4 states[kGroupThreads];  // of the softmax, from one warpgroup to the other
  bool is_leaving[kComputingGroups * kGroupThreads];  // that registers are too few for
  Ring<kItems> of_items;  // and their queries
  Ring<kStages> of_keys, of_values;
  Ring<kUnturned> of_unturned;
  int64_t chunk;  // of the schedule
  int group;      // of blocks, that this one is in
  const TensorMap* output_map;  // as that of queries
  bool has_row_boxes;  // a warpgroup's rows are all heads of some tokens, so that TMA can copy them

  // Dynamic shared memory: queries, keys, values, and those that are not turned yet.
  WL_DEVICE static uint8_t* queries(uint8_t* memory, int item, int group) {
    return memory + item * kQueryBytes + group * kGroupBytes;
  }
  WL_DEVICE static uint8_t* keys(uint8_t* memory, int stage) { return memory + kItems * kQueryBytes + stage * Keys::kBytes; }
  WL_DEVICE static uint8_t* values(uint8_t* memory, int stage) {
    return keys(memory, kStages) + stage * Values::kBytes;
  }
  WL_DEVICE static uint8_t* unturned(uint8_t* memory, int stage) {
    return values(memory, kStages) + stage * ValuesInMemory::kBytes;
  }

  WL_DEVICE void open(const AttentionParams& params, const WorkStart& start, const TensorMap* outputs) {
    constexpr int kReaders = kComputingGroups * kGroupWarps;
    if (threadIdx.x == 0) {
      chunk = start.chunk, group = int(blockIdx.x) / params.lanes;
      output_map = outputs;
      has_row_boxes = kGroupRows % int(params.group_size.divisor) == 0;
      of_items.open(kGroupThreads, kComputingGroups * kGroupThreads);
      constexpr int kFillers = kHasBoxes ? kGroupWarps : kGroupThreads;
      of_keys.open(kFillers, kReaders);
      of_values.open(kFillers, kReaders);
      if constexpr (kIsTurned) of_unturned.open(kGroupWarps, kGroupWarps);
      fence_barrier_init();
    }
  }
};

#endif

}  // namespace warploom::attention
