// The device seam, host side: the functions of csrc/decode/cuda/ptx/device.h for threads that are
// fibers, so that g++ compiles the kernels and tests run them. A last argument that nobody passes
// says, where threads meet, which call they are in.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "decode/cpu/element.h"
#include "fragments.h"
#include "simt.h"

#define SIFT_DEVICE inline
#define SIFT_KERNEL(threads, min_blocks) void
#define SIFT_GRID_CONSTANT
#define SIFT_UNROLL
#define SIFT_NO_UNROLL

#define SIFT_SITE(function) {function, __builtin_FILE(), __builtin_LINE()}

namespace sift::dev {

using sift::BFloat16;
using sift::Float16;
using sift::from_float;
using sift::to_float;
using simt::kWarpSize;
using simt::Site;

// ---- Where this thread is --------------------------------------------------------------------------

inline int thread() { return simt::running->thread; }
inline int num_threads() { return simt::running->num_threads; }
inline int block() { return simt::running->block; }
inline int num_blocks() { return simt::running->num_blocks; }
inline int lane() { return thread() % kWarpSize; }
inline int warp() { return thread() / kWarpSize; }
inline char* shared_memory() { return simt::running->shared_memory; }

// ---- Waiting for other threads ---------------------------------------------------------------------

inline void sync_block(Site site = SIFT_SITE("sync_block")) { simt::sync_block(site); }
inline void sync_warp(Site site = SIFT_SITE("sync_warp")) { simt::sync_warp(site); }
inline void sync_grid(Site site = SIFT_SITE("sync_grid")) { simt::sync_grid(site); }

inline uint32_t atomic_add(uint32_t* shared_or_global, uint32_t x) {
  return simt::atomic_add(shared_or_global, x);
}

// ---- Exchange within a warp ------------------------------------------------------------------------

template <class T>
T exchange(T value, int source_lane, const Site& site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  simt::own_slot().put(value);
  return simt::meet_warp(site)[source_lane].template get<T>();
}
template <class T>
T shuffle(T value, int source_lane, Site site = SIFT_SITE("shuffle")) {
  return exchange(value, source_lane % kWarpSize, site);
}
template <class T>
T shuffle_xor(T value, int mask, Site site = SIFT_SITE("shuffle_xor")) {
  return exchange(value, (lane() ^ mask) % kWarpSize, site);
}
template <class T>
T shuffle_up(T value, int delta, Site site = SIFT_SITE("shuffle_up")) {
  return exchange(value, lane() < delta ? lane() : lane() - delta, site);
}
inline uint32_t ballot(bool condition, Site site = SIFT_SITE("ballot")) {
  simt::own_slot().put(condition);
  return simt::meet_warp(site, simt::ballot)[lane()].get<uint32_t>();
}

// ---- Copies from global to shared memory -----------------------------------------------------------

inline void copy_async_16(void* shared, const void* global, bool valid,
                          Site site = SIFT_SITE("copy_async_16")) {
  simt::start_copy(site, shared, valid ? global : nullptr);
}
inline void copy_async_16_once(void* shared, const void* global, bool valid,
                               Site site = SIFT_SITE("copy_async_16_once")) {
  simt::start_copy(site, shared, valid ? global : nullptr);
}
inline void commit_copies() { simt::close_copy_group(); }
template <int kPending>
void wait_copies() {
  simt::wait_copy_groups(kPending);
}

// ---- 8 x 8 matrices of 16-bit elements -------------------------------------------------------------

template <int kMatrices, bool kTransposed>
void load_matrices(uint32_t (&m)[kMatrices], const void* row, const Site& site) {
  if (lane() < 8 * kMatrices) simt::read_shared(site, row);
  simt::own_slot().put(row);
  const auto words = simt::meet_warp(site, simt::load_matrices<kMatrices, kTransposed>)[lane()]
                         .template get<std::array<uint32_t, kMatrices>>();
  std::copy(words.begin(), words.end(), m);
}
inline void load_matrix_x4(uint32_t (&m)[4], const void* row,
                           Site site = SIFT_SITE("load_matrix_x4")) {
  load_matrices<4, false>(m, row, site);
}
inline void load_matrix_x4_transposed(uint32_t (&m)[4], const void* row,
                                      Site site = SIFT_SITE("load_matrix_x4_transposed")) {
  load_matrices<4, true>(m, row, site);
}
inline void load_matrix_x2(uint32_t (&m)[2], const void* row,
                           Site site = SIFT_SITE("load_matrix_x2")) {
  load_matrices<2, false>(m, row, site);
}
inline uint32_t transpose_matrix(uint32_t m, Site site = SIFT_SITE("transpose_matrix")) {
  simt::own_slot().put(m);
  return simt::meet_warp(site, simt::transpose_matrix)[lane()].get<uint32_t>();
}

template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  Site site = SIFT_SITE("multiply_add")) {
  simt::own_slot().put(
      simt::Operands{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}});
  const auto sums =
      simt::meet_warp(site, simt::multiply_add<T>)[lane()].template get<std::array<float, 4>>();
  std::copy(sums.begin(), sums.end(), c);
}

// ---- Elements and floats ---------------------------------------------------------------------------

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <class T>
float low_half(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word & 0xffffu)});
}
template <class T>
float high_half(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word >> 16)});
}

// ---- Arithmetic ------------------------------------------------------------------------------------

inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
inline float tanh(float x) { return std::tanh(x); }
inline float infinity() { return std::numeric_limits<float>::infinity(); }
inline float nan() { return std::numeric_limits<float>::quiet_NaN(); }
inline uint32_t float_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float float_from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

inline int population_count(uint32_t x) { return std::popcount(x); }
inline int find_first_set(uint32_t x) { return x == 0 ? -1 : std::countr_zero(x); }

}  // namespace sift::dev

#undef SIFT_SITE
