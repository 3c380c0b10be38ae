// Copies of 16 bytes from global to shared memory that pass by the registers (sm_80). A thread waits for its own.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// Closes a group, which may be empty.
WL_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most the last `kPending` groups are under way.
template <int kPending>
WL_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace warploom
