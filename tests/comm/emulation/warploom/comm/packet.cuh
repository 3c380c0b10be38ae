// Stands before comm's header of this name. Words or halves move one by one in a changing order, as the memory model allows.
#pragma once

#include "warploom/common.cuh"
#include "warploom/sync.cuh"

namespace warploom {

inline thread_local uint32_t shuffle_state = 1;

WL_DEVICE uint4 load_relaxed_system(const uint4* pointer) {
  give_way();  // this is where threads wait
  uint4 value;
  auto* from = reinterpret_cast<const uint32_t*>(pointer);
  auto* to = reinterpret_cast<uint32_t*>(&value);
  const uint32_t first = shuffle_state++;
  for (uint32_t i = 0; i < 4; ++i) to[(first + i) % 4] = load_relaxed_system(from + (first + i) % 4);
  return value;
}

WL_DEVICE void store_relaxed_system(uint4* pointer, uint4 value) {
  auto* from = reinterpret_cast<const uint32_t*>(&value);
  auto* to = reinterpret_cast<uint32_t*>(pointer);
  const uint32_t first = shuffle_state++;
  for (uint32_t i = 0; i < 4; ++i) {
    store_relaxed_system(to + (first + i) % 4, from[(first + i) % 4]);
    if (first % 7 == 0) give_way();  // leave a packet half written
  }
}

WL_DEVICE uint4 load_halves_relaxed_system(const uint4* pointer) {
  give_way();
  uint4 value;
  auto* from = reinterpret_cast<uint64_t*>(const_cast<uint4*>(pointer));
  auto* to = reinterpret_cast<uint64_t*>(&value);
  const uint32_t first = shuffle_state++ % 2;
  for (uint32_t i : {first, 1 - first}) to[i] = std::atomic_ref(from[i]).load(std::memory_order_relaxed);
  return value;
}

WL_DEVICE void store_halves_relaxed_system(uint4* pointer, uint4 value) {
  auto* from = reinterpret_cast<const uint64_t*>(&value);
  auto* to = reinterpret_cast<uint64_t*>(pointer);
  const uint32_t first = shuffle_state++ % 2;
  for (uint32_t i : {first, 1 - first}) {
    std::atomic_ref(to[i]).store(from[i], std::memory_order_relaxed);
    if (shuffle_state % 7 == 0) give_way();
  }
}

}  // namespace warploom
