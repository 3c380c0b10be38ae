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
    constexpr int kAtOnce = 4;  // groups whose loads do not wait for one another
    static_assert(From::kPieces % kAtOnce == 0, "heads of 64 and 128");
#pragma unroll 1
    for (int first = 0; first < From::kPieces; first += kAtOnce) {
      uint32_t pairs[kAtOnce][4];  // of components, of two keys
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) load_matrices_transposed(pairs[i], From::onwards(keys, first + i));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t(&of)[4] = pairs[i];
        const uint32_t fours[4] = {__byte_perm(of[0], of[1], 0x6420), __byte_perm(of[2], of[3], 0x6420),
                                   __byte_perm(of[0], of[1], 0x7531), __byte_perm(of[2], of[3], 0x7531)};
        store_matrices(row + To::rows_on((first + i) * kComponents), fours);
      }
    }
  }
};

#endif

}  // namespace warploom::attention
