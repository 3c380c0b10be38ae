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
  // offset(row, first | piece) from offset(row, first), if they have no bits in common: few addresses stand for all.
  WL_DEVICE static int onwards(int offset, int piece) { return (offset ^ (piece & 7) << 4) + piece / 8 * 128; }
};

// What a warp needs to copy its rows.
struct CopyState {
  WorkCursor cursor;  // of what is copied next
  const uint8_t* keys[kWarpKeys];  // rows of a tile; null where there is none
  const uint8_t* values[kWarpKeys];
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
  CopyState& state;  // the warp's own, in shared memory
  int slot;          // where the next tile goes
  int ahead;         // tiles that are copied and not used yet
  int tile;          // of keys, that comes next, and where the item's end
  int end;
  // Half of a warp's lanes find the rows of keys, half those of values, each the same row of all tiles.
  const T* head_start;  // of the item
  int kv_len;
  int kv_start;
  int page;     // of the lane's row in the tile that comes next, known before its copy starts
  int in_page;

  WL_DEVICE KeyValueRing(const AttentionParams& params, uint8_t* memory, CopyState& state)
      : params(params), memory(memory), state(state), slot(0), ahead(0), page(0) {
    clear_padding();
    enter_item();
    look_up();
  }

  WL_DEVICE uint8_t* keys(int stage) const { return memory + stage * kStageBytes; }
  WL_DEVICE uint8_t* values(int stage) const { return memory + stage * kStageBytes + kKeyBytes; }

  // Copies tiles into all slots that are free. The one place for that: code is slow where it runs for the first time.
  WL_DEVICE void fill() {
#pragma unroll 1
    for (; ahead < kStages; ++ahead) copy_next();
  }

  // The tile that was copied first has been used.
  WL_DEVICE void release() { --ahead; }

 private:
  // Starts the copy of the next tile; counts as one where there is none.
  WL_DEVICE void copy_next() {
    if (tile < end) {
      place_rows();
      copy_rows<KeyRows>(keys(slot), state.keys);
      copy_rows<ValueRows>(values(slot), state.values);
      __syncwarp();  // all have read the rows' places
      if (++tile == end) {
        advance(state.cursor, params);
        enter_item();
      }
      look_up();
    }
    cp_async_commit();
    slot = slot == kStages - 1 ? 0 : slot + 1;
  }

  WL_DEVICE static bool finds_keys() { return lane_id() < kWarpKeys; }
  // Of pages, rows, heads.
  WL_DEVICE int64_t stride(int i) const { return finds_keys() ? params.k_stride[i] : params.v_stride[i]; }

  // To the item that the cursor is at, or the next one that has tiles.
  WL_DEVICE void enter_item() {
    const WorkCursor& item = state.cursor;
#pragma unroll 1
    while (!item.done() && item.begin() >= item.end()) advance(state.cursor, params);
    tile = end = 0;
    if (item.done()) return;
    tile = item.begin(), end = item.end();
    kv_len = item.work.kv_len, kv_start = item.work.kv_start;
    head_start = static_cast<const T*>(finds_keys() ? params.k : params.v) + item.head * stride(2);
  }

  // Of this lane, in the tile that comes next.
  WL_DEVICE int row() const { return tile * kTileKeys + warp_id() * kWarpKeys + lane_id() % kWarpKeys; }

  WL_DEVICE void look_up() {
    if (tile == end || row() >= kv_len) return;
    in_page = kv_start + row();
    if (!params.pages) return;
    const int number = params.page_size.divide(row());
    page = params.pages[int64_t(kv_start) + number];
    in_page = params.page_size.remainder(row(), number);
  }

  WL_DEVICE void place_rows() {
    const auto* start = reinterpret_cast<const uint8_t*>(head_start + page * stride(0) + in_page * stride(1));
    (finds_keys() ? state.keys : state.values)[lane_id() % kWarpKeys] = row() < kv_len ? start : nullptr;
    __syncwarp();
  }

  // The warp's rows. How pieces are exchanged repeats after eight of them.
  template <class Rows>
  WL_DEVICE void copy_rows(uint8_t* to, const uint8_t* const (&rows)[kWarpKeys]) {
    constexpr int kPieces = Rows::kPieces, kSteps = ceil_div(kWarpKeys * kPieces, kWarpSize);
    constexpr bool kRepeats = kWarpSize % kPieces == 0 && 8 * kPieces % kWarpSize == 0;
    constexpr int kPeriod = kRepeats ? 8 * kPieces / kWarpSize : kSteps;
#pragma unroll
    for (int first = 0; first < kPeriod; ++first) {
      const int i = first * kWarpSize + lane_id(), row = i / kPieces, piece = i % kPieces;
      if (kWarpKeys * kPieces % kWarpSize != 0 && i >= kWarpKeys * kPieces) continue;
      uint8_t* of_lane = to + Rows::offset(warp_id() * kWarpKeys + row, piece);
#pragma unroll
      for (int step = first; step < kSteps; step += kPeriod) {
        const int rows_on = step / kPeriod * 8;
        const uint8_t* source = rows[row + rows_on];
        cp_async_16_or_zero(of_lane + rows_on * Rows::kPitch, source + piece * 16, source != nullptr);
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
