// Where the rows of keys and values lie that a warp copies, tile by tile and item by item, and their copies.
#pragma once

#include "warploom/attention/params.cuh"
#include "warploom/cp_async.cuh"

namespace warploom::attention {

constexpr int kCopyWarps = 4;  // that share the rows of a tile

// What a warp needs to copy its kRows rows of a tile, in shared memory.
template <int kRows>
struct CopyState {
  WorkCursor cursor;  // of what is copied next
  const uint8_t* keys[kRows];  // null where there is none
  const uint8_t* values[kRows];
};

// The rows that one warp of kCopyWarps copies: neighbours in every tile of Config::kTileKeys.
template <class Config>
struct KeyValueRows {
  using T = typename Config::Kv;
  static constexpr int kRows = Config::kTileKeys / kCopyWarps;
  static constexpr bool kLanesShare = kRows * 2 <= kWarpSize;  // half of them the keys, half the values
  using State = CopyState<kRows>;

  const AttentionParams& params;
  State& state;
  int warp;  // of those that copy
  int tile;  // of keys, that comes next, and where the item's end
  int end;
  // Of this lane, the same row in every tile.
  const T* head_start[kLanesShare ? 1 : 2];  // of the item
  int kv_len;
  int kv_start;
  int page;     // in the tile that comes next, known before its copy starts
  int in_page;

  WL_DEVICE KeyValueRows(const AttentionParams& params, State& state, int warp)
      : params(params), state(state), warp(warp), tile(0), end(0), page(0) {}

  WL_DEVICE bool done() const { return state.cursor.done(); }

  // To the item that the cursor is at: one that has tiles.
  WL_DEVICE void enter_item() { enter_item(state.cursor.begin()); }
  WL_DEVICE void enter_item(int first_tile) {
    const WorkCursor& item = state.cursor;
    tile = first_tile, end = item.end();
    kv_len = item.work.kv_len, kv_start = item.work.kv_start;
    head_start[0] = start_of_head(!kLanesShare || finds_keys(), item.head);
    if constexpr (!kLanesShare) head_start[1] = start_of_head(false, item.head);
    look_up();
  }

  // Fills `state` for the tile that comes next; by whole warps, as the others.
  WL_DEVICE void find() {
    if constexpr (kLanesShare) {
      find(finds_keys(), head_start[0]);
    } else {
      find(true, head_start[0]);
      find(false, head_start[1]);
    }
    __syncwarp();
  }

  // To the tile after it, once all have read `state`: whether the item has one.
  WL_DEVICE bool next_tile() {
    __syncwarp();
    ++tile;
    look_up();
    return tile < end;
  }

  // Copies the rows to a tile in shared memory. How pieces are exchanged repeats after eight of them.
  template <class Rows>
  WL_DEVICE void copy(uint8_t* to, const uint8_t* const (&rows)[kRows]) const {
    constexpr int kPieces = Rows::kPieces, kSteps = ceil_div(kRows * kPieces, kWarpSize);
    constexpr bool kRepeats = kWarpSize % kPieces == 0 && 8 * kPieces % kWarpSize == 0;
    constexpr int kPeriod = kRepeats ? 8 * kPieces / kWarpSize : kSteps;
#pragma unroll(kPeriod <= Config::kMostAddresses ? kPeriod : 1)
    for (int first = 0; first < kPeriod; ++first) {
      const int i = first * kWarpSize + lane_id(), row = i / kPieces, piece = i % kPieces;
      if (kRows * kPieces % kWarpSize != 0 && i >= kRows * kPieces) continue;
      uint8_t* of_lane = to + Rows::offset(warp * kRows + row, piece);
#pragma unroll
      for (int step = first; step < kSteps; step += kPeriod) {
        const int rows_on = step / kPeriod * 8;
        const uint8_t* source = rows[row + rows_on];
        cp_async_16_or_zero(of_lane + rows_on * Rows::kPitch, source + piece * 16, source != nullptr);
      }
    }
  }

 private:
  WL_DEVICE static bool finds_keys() { return lane_id() < kRows; }
  // Of pages, rows, heads.
  WL_DEVICE int64_t stride(bool of_keys, int i) const { return of_keys ? params.k_stride[i] : params.v_stride[i]; }
  WL_DEVICE const T* start_of_head(bool of_keys, int head) const {
    return static_cast<const T*>(of_keys ? params.k : params.v) + head * stride(of_keys, 2);
  }

  // Of this lane, in the tile that comes next.
  WL_DEVICE int row() const { return tile * Config::kTileKeys + warp * kRows + lane_id() % kRows; }

  WL_DEVICE void look_up() {
    if (tile >= end || row() >= kv_len) return;
    in_page = kv_start + row();
    if (!params.pages) return;
    const int number = params.page_size.divide(row());
    page = params.pages[int64_t(kv_start) + number];
    in_page = params.page_size.remainder(row(), number);
  }

  WL_DEVICE void find(bool of_keys, const T* head) {
    const auto* start = reinterpret_cast<const uint8_t*>(head + page * stride(of_keys, 0) + in_page * stride(of_keys, 1));
    (of_keys ? state.keys : state.values)[lane_id() % kRows] = row() < kv_len ? start : nullptr;
  }
};

}  // namespace warploom::attention
