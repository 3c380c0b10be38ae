// Rotary positions on the fly (Su et al., 2021): queries and keys turn on their way into the product. Components j and
// j + kDim / 2 of a row are a pair, which turns by position * frequency, as in rope.cuh.
//
// Angles are fractions of a revolution in fixed point: products of positions and frequencies wrap where angles do, and nothing
// is lost at positions of millions. Sines and cosines are those of the special-function unit, within 2**-21.
#pragma once

#include "warploom/attention/key_value_ring.cuh"
#include "warploom/attention/rope_pair.cuh"
#include "warploom/mma.cuh"
#include "warploom/vec.cuh"

namespace warploom::attention {

constexpr int kMaxRopePairs = 128;

// Of each pair, revolutions per position times 2**64.
struct RopeTurns {
  uint64_t of_pair[kMaxRopePairs];
};

// Of an angle in 2**-32 revolutions.
WL_DEVICE float2 cosine_and_sine(uint32_t angle) {
  const float radians = float(int(angle)) * 1.4629180792671596e-9f;
  return {__cosf(radians), __sinf(radians)};
}

// Kernels without rotary positions.
struct NoRotation {
  struct Queries {
    static constexpr bool kAreShared = false;
  };

  WL_DEVICE static NoRotation start() { return {}; }
  static constexpr float kScale = 1.0f;
};

// For rows of kDim components of type T.
template <class T, int kDim>
struct RowRotation {
  using Rows = TileRows<T, kDim>;
  static constexpr int kPairs = kDim / 2;
  // Components that are moved at once: few where there is little else, and more blocks share the registers of an SM.
  static constexpr int kWidth = kPairs % 8 == 0 && kPairs > 32 ? 8 : 4;
  static constexpr int kPieces = kPairs / kWidth;         // of half a row
  static constexpr int kLanes = kPieces > 4 ? 8 : kPieces > 2 ? 4 : kPieces;  // of a row
  // Of what has turned: float16 has no room for sqrt(2) times its largest number.
  static constexpr float kScale = is_same_v<T, __half> ? 0.5f : 1.0f;
  using Components = Vec<uint32_t, kWidth / 2>;  // neighbours in each

  // What a tile of queries has to know.
  struct Queries {
    using QueryRows = Rows;
    static constexpr bool kAreShared = true;
    uint32_t query_rows;  // 16 of them, in shared memory
  };

  const uint64_t* turns;  // `RopeTurns` in shared memory

  // For all threads of a block.
  WL_DEVICE static RowRotation start(const RopeTurns& rope) {
    __shared__ uint64_t turns[kPairs];
    for (int pair = threadIdx.x; pair < kPairs; pair += int(blockDim.x)) turns[pair] = rope.of_pair[pair];
    __syncthreads();
    return {turns};
  }

  // By a warp: kRows rows from `first_row` on, of a tile in shared memory, become those of `source`, which may be the same.
  //
  //   struct Source {
  //     int position(int row) const;
  //     template <int kCount>
  //     Vec<uint32_t, kCount> load(int row, int column) const;  // so many pairs of neighbours, of type T
  //   };
  template <int kRows, class Source>
  WL_DEVICE void turn_rows(uint8_t* tile, int first_row, const Source& source) const {
#pragma unroll 1
    for (int piece = lane_id() % kLanes; piece < kPieces; piece += kLanes) {
      const int column = piece * kWidth;
      const int first_position = source.position(lane_id() / kLanes);
      uint32_t angle[kWidth], turn[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const uint64_t exact = turns[column + i];
        angle[i] = uint32_t(uint64_t(int64_t(first_position)) * exact >> 32), turn[i] = uint32_t(exact >> 32);
      }
#pragma unroll 1
      for (int row = lane_id() / kLanes; row < kRows; row += kWarpSize / kLanes) {
        Components first = source.template load<kWidth / 2>(row, column);
        Components second = source.template load<kWidth / 2>(row, column + kPairs);
        const uint32_t onwards = source.position(row) - first_position;  // so few that the upper half of a turn is enough
        turn_pairs(first, second, angle, turn, onwards);
        store(first, tile + Rows::at(first_row + row, column));
        store(second, tile + Rows::at(first_row + row, column + kPairs));
      }
    }
  }

 private:
  // By angles that are so many turns on.
  WL_DEVICE static void turn_pairs(Components& first, Components& second, const uint32_t (&angle)[kWidth],
                                   const uint32_t (&turn)[kWidth], uint32_t onwards) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      uint32_t &a = first[i / 2], &b = second[i / 2];
      const float2 of_a = unpack_operand<T>(a), of_b = unpack_operand<T>(b);
      const RopePair low = RopePair{of_a.x, of_b.x}.turned(scaled_turn(angle[i] + onwards * turn[i]));
      const RopePair high = RopePair{of_a.y, of_b.y}.turned(scaled_turn(angle[i + 1] + onwards * turn[i + 1]));
      a = pack_operand<T>(low.first, high.first), b = pack_operand<T>(low.second, high.second);
    }
  }

  WL_DEVICE static float2 scaled_turn(uint32_t angle) {
    const float2 turn = cosine_and_sine(angle);
    return {turn.x * kScale, turn.y * kScale};
  }

  WL_DEVICE static void store(const Components& from, uint8_t* to) { from.store(reinterpret_cast<uint32_t*>(to)); }
};

// A warp's rows of a tile of keys in shared memory; `Load`: `Operands` of their type.
template <class Load, class Rows>
struct KeysToTurn {
  const uint8_t* tile;
  int first_row;
  int first_position;

  WL_DEVICE int position(int row) const { return first_position + row; }
  template <int kCount>
  WL_DEVICE Vec<uint32_t, kCount> load(int row, int column) const {
    return Load::template load_pairs<kCount>(tile + Rows::at(first_row + row, column));
  }
};

}  // namespace warploom::attention
