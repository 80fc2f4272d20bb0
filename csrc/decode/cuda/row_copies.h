// Rows of q on their way to shared memory, and which rows may be copied 16 bytes at a time.
#pragma once

#include <cstdint>

#include "decode/cuda/tiles.h"
#include "decode/params.h"
#include "device.h"

namespace sift {

// Whether all rows begin at multiples of 16 bytes; `strides`: in elements, or'ed together.
inline bool is_aligned(const void* data, int64_t strides) {
  constexpr int64_t kElementBytes = 2;
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides * kElementBytes % 16 == 0;
}

inline bool is_aligned(const KVLayout& layout) {
  return is_aligned(layout.data, layout.stride_b | layout.stride_h | layout.stride_n);
}

// Starts to copy kRows rows, laid out like those of a tile, as one group of copies. row_of(i):
// where row i begins, nullptr: nowhere, zeros take its place. All threads of the block.
template <class T, int kHeadDim, int kRows, class RowOf>
SIFT_DEVICE void start_rows(char* rows, bool is_aligned, RowOf row_of) {
  constexpr int kPieces = kHeadDim * static_cast<int>(sizeof(T)) / kPieceBytes;  // per row
  for (int i = dev::thread(); i < kRows * kPieces; i += dev::num_threads()) {
    const int piece = i % kPieces;
    const T* row = row_of(i / kPieces);
    char* target = rows + i / kPieces * Tile<kHeadDim>::kRowBytes + piece * kPieceBytes;
    if (is_aligned || row == nullptr) {
      copy_piece<Reads::kAgain>(target, reinterpret_cast<uint64_t>(row), piece);
    } else {
      constexpr int kElements = kPieceBytes / static_cast<int>(sizeof(T));
      for (int d = 0; d < kElements; ++d) {
        reinterpret_cast<T*>(target)[d] = row[piece * kElements + d];
      }
    }
  }
  dev::commit_copies();
}

}  // namespace sift
