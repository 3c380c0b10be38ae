// Copies of 16 or 4 bytes from global to shared memory that pass by the registers (sm_80). A thread waits for its own.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// Or 16 bytes of zeros; nothing is read then.
WL_DEVICE void cp_async_16_or_zero(void* shared, const void* global, bool copies) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(copies ? 16 : 0)
               : "memory");
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
