// A product's kernel as its configuration describes it, and what a block has in shared memory.
//
// A tile of the output has rows and columns as wgmma sees them, both operands in shared memory: rows are tokens and columns weights
// or, for few tokens, the other way round ("swapped"), because wgmma's rows come in 64s and its columns in 8s.
#pragma once

#include "warploom/gemm/gemm_schedule.cuh"
#include "warploom/ring.cuh"
#include "warploom/warpgroup.cuh"

namespace warploom::gemm {

// What the sums are multiplied by: nothing; a number of their token and one of their column at the end; those of blocks of k.
enum class Scaling { kNone, kAtEnd, kOfBlocks };
enum class Activation { kNone, kRelu, kGelu, kSilu };

template <class Base>
struct GemmConfig : Base {
  using In = typename Base::In;
  static constexpr Grouping kGrouping = Grouping(Base::kGroupingNumber);
  static constexpr Scaling kScaling = Scaling(Base::kScalingNumber);
  static constexpr Activation kActivation = Activation(Base::kActivationNumber);

  static constexpr int kThreads = (Base::kWarpgroups + 1) * Warpgroup::kThreads;  // one warpgroup copies
  static constexpr int kRows = Base::kWarpgroups * Base::kWaves * Warpgroup::kRows;
  static constexpr int kColumns = Base::kColumns;
  static constexpr int kTokenTile = Base::kSwapped ? kColumns : kRows;

  static constexpr int kSpan = 128;  // bytes of a row that are copied at once
  static constexpr int kDepth = kSpan / int(sizeof(In));
  static constexpr bool kRowsTurned = Base::kWeightsTurned && Base::kSwapped;  // they go on along n, not along k
  static constexpr bool kColumnsTurned = Base::kWeightsTurned && !Base::kSwapped;
  static constexpr int kRowBytes = kRows * kSpan;
  static constexpr int kColumnBytes = kColumns * kSpan;
  static constexpr int kStageBytes = kRowBytes + kColumnBytes;
  static_assert(kStageBytes % 1024 == 0 && kRowBytes % 1024 == 0, "operands begin where the exchange of pieces does");

  // Tensor cores keep 14 bits of a sum of 8-bit products: after each span it moves on to float32.
  static constexpr bool kPromotes = sizeof(In) == 1;
  static constexpr bool kHasBlocks = kScaling == Scaling::kOfBlocks;
  // Tokens in columns have a scale each; weights in columns share one, if a tile's do.
  static constexpr int kColumnScales = Base::kSharesColumnScale || !kHasBlocks ? 1 : kColumns;
  // Registers of a thread that hold sums of a span, and scales.
  static constexpr int kSpanRegisters = kColumns / 2 + (kColumnScales > 1 ? kColumns / 8 : 0);
  // Of two warpgroups one adds while the other's products run. A single one has the sums of two spans for that.
  static constexpr bool kTwoSpans =
      kPromotes && Base::kWarpgroups == 1 && Base::kWaves == 1 && kColumns / 2 + 2 * kSpanRegisters <= 192;
  static_assert(!kHasBlocks || kDepth == 128, "blocks are as deep as a span");
  static_assert(Base::kCluster == 1 || !(Base::kSwapped || Base::kParts > 1), "clusters share tokens in rows, or steps of k");
  static_assert(Base::kCluster == 1 || !Base::kGathers, "a block gathers for itself");
  static constexpr int kGatherWarps = Base::kGathers ? 2 : 0;
  static constexpr bool kHasCluster = Base::kCluster > 1 || Base::kParts > 1;
};

// What blocks of a cluster send each other if they share a tile's steps of k.
template <class Config>
struct TileParts {
  static constexpr int kAllBlocks = Config::kColumns / 8;
  static constexpr int kLeastBlocks = Config::kSwapped ? 1 : 8;  // that are written together
  static constexpr int kFinishers = Config::kParts * kLeastBlocks < kAllBlocks ? Config::kParts : kAllBlocks / kLeastBlocks;
  static constexpr int kBlocks = kAllBlocks / kFinishers;  // of 8 columns, of each finisher
  static constexpr int kBytes = (Config::kParts - 1) * Config::kRows * kBlocks * 8 * int(sizeof(float));  // of the other blocks
};

template <class Config>
struct GemmStorage {
  static constexpr int kStages = Config::kStages;
  static constexpr int kWarps = Config::kWarpgroups * Warpgroup::kWarps;
  static constexpr int kResultBytes = 16 * 128;  // of a warp, whose results go through shared memory

  struct alignas(16) Scales {
    float of_rows[Config::kRows];
    float of_columns[Config::kColumnScales];
  };

  Ring<kStages> ring;
  typename Schedule<Config>::Storage schedule;
  Ring<1> parts;  // of sums
  Tile copied_tiles[kStages];  // with their first steps
  Tile tiles[kWarps];          // that computing warps are at
  Scales scales[Config::kHasBlocks ? kStages : 1];
  alignas(128) uint8_t results[kWarps][kResultBytes];

  // Dynamic shared memory: stages, each rows and columns; parts of sums.
  WL_DEVICE static uint8_t* rows(uint8_t* memory, int stage) { return memory + stage * Config::kStageBytes; }
  WL_DEVICE static uint8_t* columns(uint8_t* memory, int stage) { return rows(memory, stage) + Config::kRowBytes; }

  WL_DEVICE static uint8_t* parts_of_sums(uint8_t* memory) { return rows(memory, kStages); }

  WL_DEVICE void open() {
    if (threadIdx.x == 0) {
      ring.open(1 + (Config::kHasBlocks ? kWarpSize : 0) + Config::kGatherWarps * kWarpSize, kWarps * Config::kCluster);
      if constexpr (Config::kParts > 1) parts.open(1, kWarps * TileParts<Config>::kFinishers);
      fence_barrier_init();
    }
  }
};

}  // namespace warploom::gemm
