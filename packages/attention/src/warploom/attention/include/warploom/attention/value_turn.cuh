// Values of 8 bits that lie key by key, as memory has them, become columns of keys, as wgmma wants them.
#pragma once

#include "warploom/mma.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// `Storage`: with rows of ValuesInMemory before and of Values after.
//
// A warp turns 32 keys of the tile. Their order within the 32 becomes that of WeightOperands<__nv_fp8_e4m3>: four neighbours are keys
// 2 l, 2 l + 1, 2 l + 8 and 2 l + 9, those that a lane has weights of.
template <class Storage>
struct ValueTurn {
  using From = typename Storage::ValuesInMemory;
  using To = typename Storage::Values;

  WL_DEVICE static void run(const uint8_t* from, uint8_t* to) {
    constexpr int kKeys = 32, kComponents = 16;  // at once, with four matrices of 8 keys by 8 pairs of components
    const int warp = int(threadIdx.x / kWarpSize % 4);
    const uint32_t keys = shared_address(from) + From::offset(warp * kKeys + lane_id(), 0);
    // Where the row of a matrix goes that the lane has the address of: even components first, then odd ones.
    const int component = lane_id() % 8 * 2 + lane_id() / 16, piece = warp * 2 + lane_id() / 8 % 2;
    const uint32_t row = shared_address(to) + To::offset(component, piece);
#pragma unroll 4
    for (int group = 0; group < From::kPieces; ++group) {
      uint32_t pairs[4];  // of components, of two keys
      load_matrices_transposed(pairs, From::onwards(keys, group));
      const uint32_t fours[4] = {__byte_perm(pairs[0], pairs[1], 0x6420), __byte_perm(pairs[2], pairs[3], 0x6420),
                                 __byte_perm(pairs[0], pairs[1], 0x7531), __byte_perm(pairs[2], pairs[3], 0x7531)};
      store_matrices(row + To::rows_on(group * kComponents), fours);
    }
  }
};

#endif

}  // namespace warploom::attention
