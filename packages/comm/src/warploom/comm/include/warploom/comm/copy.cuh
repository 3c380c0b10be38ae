// Copies by a warp, of any alignment.
#pragma once

#include "warploom/common.cuh"

namespace warploom::comm {

// By one warp, with several accesses of each thread in flight.
template <class Unit>
WL_DEVICE void copy_units(uint8_t* to, const uint8_t* from, int units) {
  constexpr int kInFlight = 8;
  Unit* target = reinterpret_cast<Unit*>(to);
  const Unit* source = reinterpret_cast<const Unit*>(from);
  for (int first = lane_id(); first < units; first += kInFlight * kWarpSize) {
    Unit held[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kWarpSize < units) held[i] = source[first + i * kWarpSize];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kWarpSize < units) target[first + i * kWarpSize] = held[i];
    }
  }
}

// The widest accesses that both addresses allow, and bytes for the rest.
WL_DEVICE void copy_bytes(uint8_t* to, const uint8_t* from, int bytes) {
  const uint64_t addresses = reinterpret_cast<uint64_t>(to) | reinterpret_cast<uint64_t>(from);
  int copied = 0;
  if (addresses % 16 == 0) {
    copied = bytes / 16 * 16;
    copy_units<uint4>(to, from, copied / 16);
  } else if (addresses % 4 == 0) {
    copied = bytes / 4 * 4;
    copy_units<uint32_t>(to, from, copied / 4);
  }
  copy_units<uint8_t>(to + copied, from + copied, bytes - copied);
}

}  // namespace warploom::comm
