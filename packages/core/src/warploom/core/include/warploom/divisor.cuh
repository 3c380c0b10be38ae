// Division of numbers from 0 to 2**31 - 1 by one that is known before the launch: a multiplication and a shift.
// Granlund and Montgomery, Division by invariant integers using multiplication, 1994.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

// `divisor_fields` in warploom.core.jit makes it.
struct Divisor {
  uint32_t divisor;
  uint32_t multiplier;  // ceil(2**(31 + bits) / divisor), where 2**bits is the divisor or the next power of two
  uint32_t shift;       // bits - 1
  uint32_t unused;

  WL_DEVICE int divide(int n) const { return divisor == 1 ? n : int(__umulhi(uint32_t(n), multiplier) >> shift); }
  WL_DEVICE int remainder(int n, int quotient) const { return n - quotient * int(divisor); }
};

}  // namespace warploom
