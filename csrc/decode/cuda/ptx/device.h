// The device seam, nvcc side: what kernels ask of the machine, each in one small function. The same
// functions for the host, where threads are fibers, are in tests/simt/device.h.
//
// Needs sm_80. Grids and blocks have one dimension; a block is a whole number of warps. Functions
// marked "whole warp" must be reached by all 32 lanes of a warp together.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#define SIFT_DEVICE __device__ __forceinline__
#define SIFT_KERNEL(threads, min_blocks) __global__ void __launch_bounds__(threads, min_blocks)
#define SIFT_GRID_CONSTANT __grid_constant__
#define SIFT_UNROLL _Pragma("unroll")
#define SIFT_NO_UNROLL _Pragma("unroll 1")

namespace sift::dev {

// The element types: storage only, arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int kWarpSize = 32;
constexpr uint32_t kWholeWarp = 0xffffffffu;

// ---- Where this thread is --------------------------------------------------------------------------

SIFT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
SIFT_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }
SIFT_DEVICE int block() { return static_cast<int>(blockIdx.x); }
SIFT_DEVICE int num_blocks() { return static_cast<int>(gridDim.x); }
SIFT_DEVICE int lane() { return thread() % kWarpSize; }
SIFT_DEVICE int warp() { return thread() / kWarpSize; }

// The LaunchShape::shared_bytes of this block, 16-byte aligned.
SIFT_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char bytes[];
  return bytes;
}

// ---- Waiting for other threads ---------------------------------------------------------------------

SIFT_DEVICE void sync_block() { __syncthreads(); }
SIFT_DEVICE void sync_warp() { __syncwarp(); }

// All threads of a launch_cooperative; what they wrote to global memory before is visible after.
SIFT_DEVICE void sync_grid() { cooperative_groups::this_grid().sync(); }

SIFT_DEVICE uint32_t atomic_add(uint32_t* shared_or_global, uint32_t x) {
  return atomicAdd(shared_or_global, x);
}

// ---- Exchange within a warp (whole warp; T has 4 or 8 bytes) ---------------------------------------

template <class T>
SIFT_DEVICE T shuffle(T value, int source_lane) {
  return __shfl_sync(kWholeWarp, value, source_lane);
}
template <class T>
SIFT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kWholeWarp, value, mask);
}
// The value of lane() - delta; one's own where there is no such lane.
template <class T>
SIFT_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(kWholeWarp, value, delta);
}
SIFT_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(kWholeWarp, condition); }

// ---- Copies from global to shared memory -----------------------------------------------------------

SIFT_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of 16 bytes; of zeros when !valid, and `global` is not read. Both addresses must be
// multiples of 16.
SIFT_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// The same, for bytes that no block reads again: they leave the L2 cache first.
SIFT_DEVICE void copy_async_16_once(void* shared, const void* global, bool valid) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

// Closes a group of the copies that this thread started since the last one.
SIFT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way. This thread alone sees the
// bytes; others do after a sync.
template <int kPending>
SIFT_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// ---- 8 x 8 matrices of 16-bit elements (whole warp) ------------------------------------------------
// Lane i holds elements (row i / 4, columns 2 * (i % 4) and the next), the first in the low half.

// Lane i gives the address, a multiple of 16, of row i % 8 of matrix i / 8.
SIFT_DEVICE void load_matrix_x4(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
SIFT_DEVICE void load_matrix_x4_transposed(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
// Lanes 0 to 15 give addresses.
SIFT_DEVICE void load_matrix_x2(uint32_t (&m)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(m[0]), "=r"(m[1])
               : "r"(shared_address(row))
               : "memory");
}
SIFT_DEVICE uint32_t transpose_matrix(uint32_t m) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(m));
  return transposed;
}

// c += a x b: a is 16 x 16 in four matrices (rows 0-7, rows 8-15, then the same of columns 8-15),
// b is 16 x 8 in two, each held transposed, c is 16 x 8: lane i holds row i / 4, columns
// 2 * (i % 4) and the next, then the same of row i / 4 + 8.
template <class T>
SIFT_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
SIFT_DEVICE void multiply_add<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
SIFT_DEVICE void multiply_add<Float16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Elements and floats (rounded to the nearest, ties to even) ------------------------------------

SIFT_DEVICE float to_float(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
SIFT_DEVICE float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

template <class T>
SIFT_DEVICE T from_float(float x);
template <>
SIFT_DEVICE BFloat16 from_float<BFloat16>(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
SIFT_DEVICE Float16 from_float<Float16>(float x) {
  Float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two elements in one word, and back.
template <class T>
SIFT_DEVICE uint32_t pack(float low, float high);
template <>
SIFT_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
SIFT_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <class T>
SIFT_DEVICE float low_half(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word & 0xffffu)});
}
template <class T>
SIFT_DEVICE float high_half(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word >> 16)});
}

// ---- Arithmetic ------------------------------------------------------------------------------------

// Within 2 ulp; results below the normal numbers are 0.
SIFT_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIFT_DEVICE float log2(float x) { return ::log2f(x); }
SIFT_DEVICE float tanh(float x) { return ::tanhf(x); }
SIFT_DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
SIFT_DEVICE float nan() { return __uint_as_float(0x7fc00000u); }
SIFT_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
SIFT_DEVICE float float_from_bits(uint32_t bits) { return __uint_as_float(bits); }

SIFT_DEVICE int population_count(uint32_t x) { return __popc(x); }
// Position of the lowest 1, or -1 when there is none.
SIFT_DEVICE int find_first_set(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }

}  // namespace sift::dev
