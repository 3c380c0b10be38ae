// Copies of 16 or 4 bytes from global to shared memory that pass by the registers (sm_80). A thread waits for its own.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// The first `bytes` of 16, and zeros after them. The address is aligned to 16, and not read from if there are none.
WL_DEVICE void cp_async_16_of(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
WL_DEVICE void cp_async_16_or_zero(void* shared, const void* global, bool copies) {
  cp_async_16_of(shared_address(shared), global, copies ? 16 : 0);
}
// Four bytes, of which neighbours are read from the first-level cache.
WL_DEVICE void cp_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// Closes a group, which may be empty.
WL_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most the last `kPending` groups are under way.
template <int kPending>
WL_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace warploom
