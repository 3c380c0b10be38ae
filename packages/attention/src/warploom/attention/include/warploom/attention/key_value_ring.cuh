// Tiles of keys and values on their way through shared memory.
//
// A ring of kStages tiles of kTileKeys rows. Each warp copies rows of its own, 16 of every tile, and is some tiles ahead of the
// work, also from one item to the next, so that memory is never idle between them.
#pragma once

#include "warploom/attention/params.cuh"
#include "warploom/cp_async.cuh"

namespace warploom::attention {

constexpr int kWarpKeys = 16;  // rows of a tile that a warp copies

// Rows of kDim elements in shared memory. Pieces of 16 bytes are exchanged within 128 bytes by the row's number, so that eight
// rows of a matrix lie in different banks.
template <class T, int kDim>
struct TileRows {
  static constexpr int kPieces = kDim * int(sizeof(T)) / 16;
  static constexpr int kPitch = ceil_div(kDim * int(sizeof(T)), 128) * 128;

  WL_DEVICE static int offset(int row, int piece) { return row * kPitch + ((piece ^ (row & 7)) << 4); }
};

template <class Config>
struct KeyValueRing {
  using T = typename Config::Kv;
  using KeyRows = TileRows<T, Config::kHeadDim>;
  using ValueRows = TileRows<T, Config::kValueDim>;
  static constexpr int kKeyBytes = kTileKeys * KeyRows::kPitch;
  static constexpr int kStageBytes = kKeyBytes + kTileKeys * ValueRows::kPitch;
  static constexpr int kStages = Config::kStages;

  const AttentionParams& params;
  uint8_t* memory;
  WorkCursor cursor;  // of what is copied next
  int tile;           // of keys, and where the item's end
  int end;
  int kv_start;
  int page;           // of this lane's row in that tile, which is known before its copy starts
  int slot;           // where it goes

  WL_DEVICE KeyValueRing(const AttentionParams& params, uint8_t* memory, const WorkStart& start)
      : params(params), memory(memory), tile(0), end(0), kv_start(0), page(0), slot(0) {
    clear_padding();
    cursor.open<Config>(params, start);
    enter_item();
    look_up();
    for (int stage = 0; stage < kStages - 1; ++stage) copy_next();
  }

  WL_DEVICE uint8_t* keys(int stage) const { return memory + stage * kStageBytes; }
  WL_DEVICE uint8_t* values(int stage) const { return memory + stage * kStageBytes + kKeyBytes; }

  // Starts the copy of the next tile into the slot that has been free for longest; counts as one where there is none.
  WL_DEVICE void copy_next() {
    if (!cursor.done()) {
      const int row = tile * kTileKeys + warp_id() * kWarpKeys + lane_id() % kWarpKeys;
      int64_t key_offset = -1, value_offset = -1;
      if (row < cursor.work.kv_len) {
        const int64_t head = cursor.head;
        int64_t outer = 0, inner = int64_t(kv_start) + row;
        if (params.pages) outer = page, inner = row % params.page_size;
        key_offset = outer * params.k_stride[0] + inner * params.k_stride[1] + head * params.k_stride[2];
        value_offset = outer * params.v_stride[0] + inner * params.v_stride[1] + head * params.v_stride[2];
      }
      copy_rows<KeyRows>(keys(slot), static_cast<const T*>(params.k), key_offset);
      copy_rows<ValueRows>(values(slot), static_cast<const T*>(params.v), value_offset);
      if (++tile == end) {
        cursor.next<Config>(params);
        enter_item();
      }
      look_up();
    }
    cp_async_commit();
    slot = slot == kStages - 1 ? 0 : slot + 1;
  }

 private:
  // To the item that the cursor is at, or the next one that has tiles.
  WL_DEVICE void enter_item() {
#pragma unroll 1
    while (!cursor.done() && cursor.begin() >= cursor.end()) cursor.next<Config>(params);
    if (cursor.done()) return;
    tile = cursor.begin(), end = cursor.end();
    kv_start = params.kv_starts[cursor.request];
  }

  WL_DEVICE void look_up() {
    if (cursor.done() || !params.pages) return;
    const int row = tile * kTileKeys + warp_id() * kWarpKeys + lane_id() % kWarpKeys;
    if (row < cursor.work.kv_len) page = params.pages[int64_t(kv_start) + row / params.page_size];
  }

  // The warp's rows; lane i knows where row i begins, -1 where there is none.
  template <class Rows>
  WL_DEVICE void copy_rows(uint8_t* to, const T* from, int64_t offset) {
    constexpr int kAll = kWarpKeys * Rows::kPieces;
#pragma unroll
    for (int start = 0; start < kAll; start += kWarpSize) {
      const int i = start + lane_id(), row = i / Rows::kPieces, piece = i % Rows::kPieces;
      const int64_t of_row = __shfl_sync(kFullMask, offset, row % kWarpKeys);
      if (kAll % kWarpSize == 0 || i < kAll) {
        const T* source = from + max(of_row, int64_t(0)) + piece * (16 / int(sizeof(T)));
        cp_async_16_or_zero(to + Rows::offset(warp_id() * kWarpKeys + row, piece), source, of_row >= 0);
      }
    }
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
