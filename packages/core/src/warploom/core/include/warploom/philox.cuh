// Philox 4x32-10: random numbers as a function of (seed, offset, row, draw).
//
// The counter is offset * 2**64 + row * 2**32 + draw / 4, the key is the seed, and word draw % 4 of the result is the draw's.
// `warploom.sampling.randomness` states what row and draw are; its torch reference gives the same words.
// Source: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

// The words of draws 4 * block ... 4 * block + 3, of several blocks at once: they share the keys of the rounds.
template <int kCount>
WL_DEVICE void philox_words(uint64_t seed, uint64_t offset, uint32_t row, const uint32_t (&blocks)[kCount],
                            uint4 (&words)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i] = make_uint4(blocks[i], row, uint32_t(offset), uint32_t(offset >> 32));
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
#pragma unroll
    for (uint4& c : words) {
      const uint64_t p0 = uint64_t(c.x) * 0xD2511F53u;
      const uint64_t p1 = uint64_t(c.z) * 0xCD9E8D57u;
      c = make_uint4(uint32_t(p1 >> 32) ^ c.y ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w ^ k1, uint32_t(p0));
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

WL_DEVICE uint4 philox_words(uint64_t seed, uint64_t offset, uint32_t row, uint32_t block) {
  const uint32_t blocks[1] = {block};
  uint4 words[1];
  philox_words(seed, offset, row, blocks, words);
  return words[0];
}

// In [0, 1), a multiple of 2**-24: exact.
WL_DEVICE float uniform_from(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

// -log(1 - (word + 0.5) * 2**-32): exponentially distributed. Each half takes the form that keeps its resolution: small
// values win races, large ones would lose theirs to the rounding of a share near 1.
WL_DEVICE float exponential_from(uint32_t word) {
  if (word < 0x80000000u) return -log1pf(-fmaf(float(word), 0x1p-32f, 0x1p-33f));
  return -logf(fmaf(float(~word), 0x1p-32f, 0x1p-33f));
}

}  // namespace warploom
