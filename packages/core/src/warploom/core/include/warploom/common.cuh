// Types and small arithmetic that every kernel uses. Compiles under NVRTC and nvcc; includes nothing.
#pragma once

#define WL_DEVICE __device__ __forceinline__
#define WL_HOST_DEVICE __host__ __device__ __forceinline__

// NVRTC has no offsetof; this is what its front end calls the same thing.
#ifdef __CUDACC_RTC__
#define WL_OFFSETOF(type, member) __INTADDR__(&(((type*)0)->member))
#else
#define WL_OFFSETOF(type, member) __builtin_offsetof(type, member)
#endif

namespace warploom {

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

template <class A, class B>
struct is_same {
  static constexpr bool value = false;
};
template <class A>
struct is_same<A, A> {
  static constexpr bool value = true;
};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <bool kCondition, class A, class B>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool kCondition, class A, class B>
using conditional_t = typename conditional<kCondition, A, B>::type;

WL_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
WL_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

WL_DEVICE float negative_infinity() { return __int_as_float(0xff800000); }
WL_DEVICE float quiet_nan() { return __int_as_float(0x7fc00000); }

WL_DEVICE int lane_id() { return threadIdx.x & (kWarpSize - 1); }
WL_DEVICE int warp_id() { return threadIdx.x / kWarpSize; }

// exp2 on the special-function unit: 2 ulp, the base of every softmax here.
WL_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The 32-bit address that shared-memory PTX instructions take.
WL_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
WL_DEVICE float load_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}
WL_DEVICE void load_shared(float (&values)[2], uint32_t address) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(values[0]), "=f"(values[1]) : "r"(address));
}

}  // namespace warploom
