// Shared memory of a block of attention_hopper.cuh, and the barriers by which its warpgroups meet.
#pragma once

#include "warploom/attention/item.cuh"
#include "warploom/attention/key_value_rows.cuh"
#include "warploom/sync.cuh"
#include "warploom/tma.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kComputingGroups = 2;
constexpr int kGroupRows = 64;
constexpr int kFewRows = kWarpRows;  // of an item, that are no work for wgmma
constexpr int kGroupWarps = 4;
constexpr int kGroupThreads = kGroupWarps * kWarpSize;

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

struct Warpgroup {
  WL_DEVICE static int number() { return int(threadIdx.x / kGroupThreads); }
  WL_DEVICE static int thread() { return int(threadIdx.x % kGroupThreads); }
  WL_DEVICE static int warp() { return int(threadIdx.x / kWarpSize % kGroupWarps); }
};

// Rows of kDim elements of type T as wgmma wants them: columns of 128 bytes, of all rows, their pieces of 16 bytes exchanged. The
// last column may have more than there are elements.
template <int kRowsOfTile, int kDim, class T = uint16_t>
struct HopperRows {
  static constexpr int kPieces = kDim * int(sizeof(T)) / 16;
  static constexpr int kPitch = 128;
  static constexpr int kColumnBytes = kRowsOfTile * kPitch;
  static constexpr int kColumnElements = kPitch / int(sizeof(T));
  static constexpr int kColumns = ceil_div(kDim, kColumnElements);
  static constexpr int kBytes = kColumns * kColumnBytes;

  WL_DEVICE static int offset(int row, int piece) {
    return piece / 8 * kColumnBytes + row * kPitch + ((piece % 8 ^ (row & 7)) << 4);
  }
  // offset(row, piece) from offset(row, 0), also of a tile's address and an offset.
  WL_DEVICE static uint32_t onwards(uint32_t offset, int piece) { return (offset ^ piece % 8 << 4) + piece / 8 * kColumnBytes; }
  // From the first of eight rows to the first of others.
  WL_DEVICE static constexpr int rows_on(int rows) { return rows * kPitch; }
  // Where 32 bytes begin that are summed over.
  WL_DEVICE static constexpr int step(int number) { return number / 4 * kColumnBytes + number % 4 * 32; }
};

// A place in a ring of stages that goes round: `at` tells also whether the round is odd, which the barriers' phases go by.
template <int kStages>
struct RingPlace {
  int at = 0;

  WL_DEVICE int stage() const { return at < kStages ? at : at - kStages; }
  WL_DEVICE uint32_t parity() const { return at < kStages ? 0 : 1; }
  WL_DEVICE RingPlace before() const { return {at == 0 ? 2 * kStages - 1 : at - 1}; }
  WL_DEVICE void next() { at = at == 2 * kStages - 1 ? 0 : at + 1; }
};

// Stages that are filled by some warps and read by others.
template <int kStages>
struct Ring {
  using Place = RingPlace<kStages>;

  uint64_t full[kStages], free[kStages];

  WL_DEVICE void open(int fillers, int readers) {
    for (int stage = 0; stage < kStages; ++stage) mbarrier_init(&full[stage], fillers), mbarrier_init(&free[stage], readers);
  }
  WL_DEVICE void wait_free(const Place& place) { mbarrier_wait(&free[place.stage()], place.parity() ^ 1); }
  // What threads write, also by cp.async, the tensor cores see only after a fence.
  WL_DEVICE void wait_full(const Place& place, bool by_threads) {
    mbarrier_wait(&full[place.stage()], place.parity());
    if (by_threads) fence_async_proxy();
  }
  // By a warp, all lanes of which have read what they need.
  WL_DEVICE void release(const Place& place) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(&free[place.stage()]);
  }
  // By a thread, of what all threads read: racecheck follows only their own arrivals.
  WL_DEVICE void release_by_thread(const Place& place) { mbarrier_arrive(&free[place.stage()]); }
};

template <class Config>
struct HopperStorage {
  static constexpr int kStages = Config::kStages;
  static constexpr bool kHasBoxes = Config::kBoxRows > 0;
  static constexpr int kItems = Config::kItems;  // whose queries have room: that is worked on, and the next
  using Kv = typename Config::Kv;
  using Queries = HopperRows<kGroupRows, Config::kHeadDim, typename Config::Query>;
  using Outputs = HopperRows<kGroupRows, Config::kValueDim>;  // which go where queries were
  using Keys = HopperRows<Config::kTileKeys, Config::kHeadDim, Kv>;
  using ValuesInMemory = HopperRows<Config::kTileKeys, Config::kValueDim, Kv>;
  // Those of 8 bits have to lie along what products sum over, which are keys: they are turned on their way.
  static constexpr bool kIsTurned = sizeof(Kv) == 1;
  static constexpr int kUnturned = 3;  // stages before that
  using Values = conditional_t<kIsTurned, HopperRows<Config::kValueDim, Config::kTileKeys, Kv>, ValuesInMemory>;
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
