// Rows in shared memory as TMA writes them and wgmma reads them, with the exchange of pieces within 128 bytes (sm_90).
#pragma once

#include "warploom/common.cuh"

namespace warploom {

// Rows of kDim elements of type T as wgmma wants them: columns of 128 bytes, of all rows, their pieces of 16 bytes exchanged. The
// last column may have more than there are elements.
template <int kRowsOfTile, int kDim, class T = uint16_t>
struct SwizzledRows {
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

}  // namespace warploom
