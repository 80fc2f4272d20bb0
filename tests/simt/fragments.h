// What the warp does as a whole: each function takes what the 32 lanes gave and leaves, in the same
// slots, what each gets. The layouts are those of PTX: ldmatrix, movmatrix, mma.m16n8k16.
#pragma once

#include <cstdint>

#include "simt.h"

namespace sift::simt {

// bool -> the mask of all lanes, uint32_t
void ballot(Slot* slots);

// The address of a matrix row -> std::array<uint32_t, kMatrices>
template <int kMatrices, bool kTransposed>
void load_matrices(Slot* slots);

// uint32_t -> uint32_t
void transpose_matrix(Slot* slots);

// Operands -> std::array<float, 4>, for T = BFloat16 or Float16.
struct Operands {
  float c[4];
  uint32_t a[4];
  uint32_t b[2];
};
template <class T>
void multiply_add(Slot* slots);

}  // namespace sift::simt
