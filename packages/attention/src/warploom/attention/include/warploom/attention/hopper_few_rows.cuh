// Items of up to 16 rows on Hopper: too little to multiply for wgmma. All warps that compute have the rows, and each takes its part
// of every tile of keys: they meet only at the item's end, as in attention.cuh.
#pragma once

#include "warploom/attention/hopper_storage.cuh"
#include "warploom/attention/query_tile.cuh"
#include "warploom/attention/shared_rows_result.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Config>
struct FewRows {
  using Storage = HopperStorage<Config>;
  static constexpr int kWarps = kComputingGroups * kGroupWarps;
  static constexpr int kKeys = Config::kTileKeys / kWarps;  // of a tile, that a warp takes
  static constexpr bool kAreServed = kKeys % 16 == 0 && !Storage::kIsTurned;  // as HopperAttention.tile_sizes() has it

  // Where queries, keys and values lie, for a QueryTile.
  struct Queries {
    using QueryRows = typename Storage::Queries;
    static constexpr bool kAreShared = true;
    uint32_t query_rows;
  };
  struct KeyValues {
    using KeyOperand = typename Config::Kv;
    using KeyOperandRows = typename Storage::Keys;
    using ValueRows = typename Storage::Values;
    uint8_t* memory;

    WL_DEVICE uint8_t* key_operands(int stage) const { return Storage::keys(memory, stage); }
    WL_DEVICE uint8_t* values(int stage) const { return Storage::values(memory, stage); }
  };
  using Tile = QueryTile<Config, KeyValues, Queries>;

  struct Team {
    static constexpr int kWarps = FewRows::kWarps;
    static constexpr int kColumns = Config::kHeadDim > 64 ? 32 : 16;

    WL_DEVICE static void sync() { sync_threads_of(kItemBarrier, kWarps * kWarpSize); }
  };
  // Where the queries were.
  static_assert(sizeof(SharedRows<Team>) <= Storage::kQueryBytes, "what warps leave for one another");
  using Result = SharedRowsResult<Config, Tile, Team>;
};

#endif

}  // namespace warploom::attention
