// Stands before core's header of this name: codes are a quarter of the numbers, as whole numbers of eight bits.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

template <class Code>
uint32_t pack_fp8x4(float a, float b, float c, float d) {
  const auto byte = [](float x) { return uint32_t(uint8_t(int8_t(std::lround(x / 4)))); };
  return byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
}

}  // namespace warploom
