// Stands before core's header of this name: the same functions on the host's memory.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE uint32_t load_relaxed_system(const uint32_t* pointer) {
  return std::atomic_ref(*const_cast<uint32_t*>(pointer)).load(std::memory_order_relaxed);
}
WL_DEVICE uint32_t load_acquire_system(const uint32_t* pointer) {
  give_way();  // this is where warps wait
  return std::atomic_ref(*const_cast<uint32_t*>(pointer)).load(std::memory_order_acquire);
}
WL_DEVICE void store_relaxed_system(uint32_t* pointer, uint32_t value) {
  std::atomic_ref(*pointer).store(value, std::memory_order_relaxed);
}
WL_DEVICE void store_release_system(uint32_t* pointer, uint32_t value) {
  std::atomic_ref(*pointer).store(value, std::memory_order_release);
  give_way();  // whoever waits for it may run before what should have come first
}
WL_DEVICE uint64_t load_relaxed_system(const uint64_t* pointer) {
  give_way();
  return std::atomic_ref(*const_cast<uint64_t*>(pointer)).load(std::memory_order_relaxed);
}
WL_DEVICE void store_relaxed_system(uint64_t* pointer, uint64_t value) {
  std::atomic_ref(*pointer).store(value, std::memory_order_relaxed);
}
WL_DEVICE void wait_for_previous_kernel() {}
WL_DEVICE void allow_next_kernel() {}
WL_DEVICE uint64_t global_nanoseconds() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

}  // namespace warploom
