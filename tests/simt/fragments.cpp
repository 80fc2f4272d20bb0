#include "fragments.h"

#include <array>
#include <cstring>

#include "decode/cpu/element.h"

namespace sift::simt {
namespace {

constexpr int kSide = 8;  // of a matrix
using Row = float __attribute__((vector_size(kSide * sizeof(float))));

uint16_t half(uint32_t word, int i) { return static_cast<uint16_t>(word >> (16 * i)); }

// An 8 x 8 matrix as the lanes hold it: lane i has row i / 4, columns 2 * (i % 4) and the next.
struct Matrix {
  uint16_t element[kSide][kSide];

  uint32_t held_by(int lane) const {
    const uint16_t* pair = &element[lane / 4][2 * (lane % 4)];
    return pair[0] | uint32_t{pair[1]} << 16;
  }
  uint32_t transposed_held_by(int lane) const {
    const int row = 2 * (lane % 4), column = lane / 4;
    return element[row][column] | uint32_t{element[row + 1][column]} << 16;
  }
};

}  // namespace

void ballot(Slot* slots) {
  uint32_t mask = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    mask |= uint32_t{slots[lane].get<bool>()} << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) slots[lane].put(mask);
}

template <int kMatrices, bool kTransposed>
void load_matrices(Slot* slots) {
  Matrix matrices[kMatrices];
  for (int i = 0; i < kMatrices * kSide; ++i) {
    std::memcpy(matrices[i / kSide].element[i % kSide], slots[i].get<const void*>(),
                sizeof(Matrix::element[0]));
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::array<uint32_t, kMatrices> words;
    for (int i = 0; i < kMatrices; ++i) {
      words[i] = kTransposed ? matrices[i].transposed_held_by(lane) : matrices[i].held_by(lane);
    }
    slots[lane].put(words);
  }
}
template void load_matrices<2, false>(Slot*);
template void load_matrices<4, false>(Slot*);
template void load_matrices<4, true>(Slot*);

void transpose_matrix(Slot* slots) {
  Matrix matrix;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto word = slots[lane].get<uint32_t>();
    for (int i = 0; i < 2; ++i) matrix.element[lane / 4][2 * (lane % 4) + i] = half(word, i);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) slots[lane].put(matrix.transposed_held_by(lane));
}

template <class T>
void multiply_add(Slot* slots) {
  constexpr int kRows = 16, kDepth = 16;
  float a[kRows][kDepth];
  Row b[kDepth], c[kRows];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto held = slots[lane].get<Operands>();
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        a[group + 8 * (j % 2)][pair + 8 * (j / 2) + i] = to_float(T{half(held.a[j], i)});
      }
      for (int j = 0; j < 2; ++j) b[pair + 8 * j + i][group] = to_float(T{half(held.b[j], i)});
      for (int j = 0; j < 2; ++j) c[group + 8 * j][pair + i] = held.c[2 * j + i];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    Row sum = c[i];
    for (int k = 0; k < kDepth; ++k) sum += a[i][k] * b[k];
    c[i] = sum;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    slots[lane].put(std::array<float, 4>{c[group][pair], c[group][pair + 1], c[group + 8][pair],
                                         c[group + 8][pair + 1]});
  }
}
template void multiply_add<BFloat16>(Slot*);
template void multiply_add<Float16>(Slot*);

}  // namespace sift::simt
