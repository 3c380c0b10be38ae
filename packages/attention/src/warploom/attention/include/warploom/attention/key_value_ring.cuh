// Tiles of keys and values on their way through shared memory, for warps that copy what they work on.
//
// A ring of kStages tiles. Each warp copies rows of its own, and is some tiles ahead of the work, also from one item to the next,
// so that memory is never idle between them.
#pragma once

#include "warploom/attention/key_value_rows.cuh"

namespace warploom::attention {

// Rows of kDim elements in shared memory. Pieces of 16 bytes are exchanged within 128 bytes by the row's number, so that eight
// rows of a matrix lie in different banks.
template <class T, int kDim>
struct TileRows {
  static constexpr int kPieces = kDim * int(sizeof(T)) / 16;
  static constexpr int kPitch = ceil_div(kDim * int(sizeof(T)), 128) * 128;

  WL_DEVICE static int offset(int row, int piece) { return row * kPitch + ((piece ^ (row & 7)) << 4); }
  // offset(row, first | piece) from offset(row, first), if they have no bits in common, also of an address that is a multiple
  // of 128 bytes and an offset: else compilers keep what to add for each piece, in registers.
  WL_DEVICE static uint32_t onwards(uint32_t offset, int piece) { return (offset ^ (piece & 7) << 4) + piece / 8 * 128; }
  // From the first of eight rows to the first of others.
  WL_DEVICE static constexpr int rows_on(int rows) { return rows * kPitch; }
  // Of an element.
  WL_DEVICE static int at(int row, int column) {
    const int byte = column * int(sizeof(T));
    return offset(row, byte / 16) + byte % 16;
  }
};

template <class Config>
struct KeyValueRing {
  using T = typename Config::Kv;
  using Rows = KeyValueRows<Config>;
  using KeyOperand = conditional_t<Config::kHasRope, typename Config::Query, T>;  // rotated keys are of 16 bits
  using KeyRows = TileRows<T, Config::kHeadDim>;
  using KeyOperandRows = TileRows<KeyOperand, Config::kHeadDim>;
  using ValueRows = TileRows<T, Config::kValueDim>;
  static constexpr int kKeyBytes = Config::kTileKeys * KeyRows::kPitch;
  static constexpr int kStageBytes = kKeyBytes + Config::kTileKeys * ValueRows::kPitch;
  static constexpr int kStages = Config::kStages;

  uint8_t* memory;
  Rows rows;
  int slot;   // where the next tile goes
  int ahead;  // tiles that are copied and not used yet

  WL_DEVICE KeyValueRing(const AttentionParams& params, uint8_t* memory, typename Rows::State& state)
      : memory(memory), rows(params, state, warp_id()), slot(0), ahead(0) {
    clear_padding();
    enter_item();
  }

  WL_DEVICE uint8_t* keys(int stage) const { return memory + stage * kStageBytes; }
  WL_DEVICE uint8_t* values(int stage) const { return memory + stage * kStageBytes + kKeyBytes; }
  // Where keys are when they are multiplied; those that become wider on their way have one place for all stages.
  WL_DEVICE uint8_t* key_operands(int stage) const {
    return is_same_v<KeyOperand, T> ? keys(stage) : memory + kStages * kStageBytes;
  }

  // Copies tiles into all slots that are free. The one place for that: code is slow where it runs for the first time.
  WL_DEVICE void fill() {
#pragma unroll 1
    for (; ahead < kStages; ++ahead) copy_next();
  }

  // The tile that was copied first has been used.
  WL_DEVICE void release() { --ahead; }

 private:
  // The item that the cursor is at, or the next one that has tiles.
  WL_DEVICE void enter_item() {
    const WorkCursor& item = rows.state.cursor;
#pragma unroll 1
    while (!item.done() && item.begin() >= item.end()) advance<Config::kCalls>(rows.state.cursor, rows.params);
    if (!item.done()) rows.enter_item();
  }

  // Starts the copy of the next tile; counts as one where there is none.
  WL_DEVICE void copy_next() {
    if (!rows.done()) {
      rows.find();
      rows.template copy<KeyRows>(keys(slot), rows.state.keys);
      rows.template copy<ValueRows>(values(slot), rows.state.values);
      if (!rows.next_tile()) {
        advance<Config::kCalls>(rows.state.cursor, rows.params);
        enter_item();
      }
    }
    cp_async_commit();
    slot = slot == kStages - 1 ? 0 : slot + 1;
  }

  // Columns between the head's dim and the next multiple of a matrix are never copied, and have to be 0.
  WL_DEVICE void clear_padding() {
    if constexpr (KeyRows::kPieces % 2 || ValueRows::kPieces % 2) {
      for (int i = threadIdx.x; i < kStages * kStageBytes / 16; i += int(blockDim.x)) {
        reinterpret_cast<uint4*>(memory)[i] = uint4{0, 0, 0, 0};
      }
      __syncthreads();
    }
  }
};

}  // namespace warploom::attention
