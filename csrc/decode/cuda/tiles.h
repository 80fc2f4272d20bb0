// Tiles of 16 rows of K or V, on their way from global to shared memory and into tensor cores.
//
// Each warp has a ring of stages of its own and waits for nobody else. A row of a tile is any row of
// memory: consecutive keys, pages of a cache, or the rows of a list, which is how V is gathered.
#pragma once

#include <cstdint>

#include "device.h"

namespace sift {

constexpr int kTileRows = 16;

template <int kHeadDim>
struct Tile {
  // 16 bytes of padding: the 8 rows that a matrix load reads at once lie in different banks.
  static constexpr int kRowBytes = kHeadDim * 2 + 16;
  static constexpr int kBytes = kTileRows * kRowBytes;
};

// Which rows of a tile are there, for its `use`; bit r is row r.
using RowMask = uint32_t;

// Whether a launch comes back to rows: if not, they are the first to leave the L2 cache.
enum class Reads { kOnce, kAgain };

constexpr int kPieceBytes = 16;

// Starts to copy a piece of a row; `row`: its address, or 0, and zeros take its place.
template <Reads kReads>
SIFT_DEVICE void copy_piece(char* target, uint64_t row, int piece) {
  const auto* source = reinterpret_cast<const void*>(row + piece * kPieceBytes);
  if constexpr (kReads == Reads::kOnce) {
    dev::copy_async_16_once(target, source, row != 0);
  } else {
    dev::copy_async_16(target, source, row != 0);
  }
}

template <class T, int kHeadDim, int kStages, Reads kReads = Reads::kAgain>
class TileRing {
 public:
  static constexpr int kBytes = kStages * Tile<kHeadDim>::kBytes;
  static_assert(kStages >= 2 && kStages <= 4, "history_ holds the masks of 4 tiles");

  // `memory`: this warp's kBytes. is_aligned: all rows begin at multiples of 16 bytes.
  SIFT_DEVICE TileRing(char* memory, bool is_aligned) : memory_(memory), is_aligned_(is_aligned) {}

  // For each tile i in [0, num_tiles), in order: use(i, tile in shared memory, mask of its rows).
  // row_of(i, r): where row r < 16 of tile i begins, nullptr: nowhere, zeros take its place. A tile
  // without rows holds anything.
  template <class RowOf, class Use>
  SIFT_DEVICE void stream(int num_tiles, RowOf row_of, Use use) {
    start(num_tiles, row_of);
    finish(num_tiles, row_of, use);
  }

  // The same in two steps: the first tiles are on their way when start() returns.
  template <class RowOf>
  SIFT_DEVICE void start(int num_tiles, RowOf row_of) {
    for (int i = 0; i < kStages - 1; ++i) fetch(i, num_tiles, row_of);
  }
  template <class RowOf, class Use>
  SIFT_DEVICE void finish(int num_tiles, RowOf row_of, Use use) {
    for (int i = 0; i < num_tiles; ++i) {
      fetch(i + kStages - 1, num_tiles, row_of);
      dev::wait_copies<kStages - 1>();
      dev::sync_warp();
      const auto mask = static_cast<RowMask>(history_ >> (16 * (kStages - 1))) & 0xffffu;
      use(i, memory_ + i % kStages * Tile<kHeadDim>::kBytes, mask);
      dev::sync_warp();
    }
  }

 private:
  template <class RowOf>
  SIFT_DEVICE void fetch(int i, int num_tiles, RowOf row_of) {
    const int lane = dev::lane();
    const T* row = i < num_tiles && lane < kTileRows ? row_of(i, lane) : nullptr;
    const RowMask mask = dev::ballot(row != nullptr);
    history_ = history_ << 16 | mask;
    if (mask != 0) copy(row, memory_ + i % kStages * Tile<kHeadDim>::kBytes);
    dev::commit_copies();  // an empty one keeps the count right
  }

  // Lane r < 16 brings the address of row r. Neighbouring lanes copy neighbouring bytes.
  SIFT_DEVICE void copy(const T* row_of_lane, char* tile) {
    const auto address = reinterpret_cast<uint64_t>(row_of_lane);
    if (!is_aligned_) return copy_elements(address, tile);
    constexpr int kPieces = kHeadDim * static_cast<int>(sizeof(T)) / kPieceBytes;  // per row
    SIFT_UNROLL
    for (int i = 0; i < kTileRows * kPieces / 32; ++i) {
      const int index = i * 32 + dev::lane();
      const int row = index / kPieces;
      const int piece = index % kPieces;
      copy_piece<kReads>(tile + row * Tile<kHeadDim>::kRowBytes + piece * kPieceBytes,
                         dev::shuffle(address, row), piece);
    }
  }

  // The same for rows that begin anywhere. The bytes are there when it returns.
  SIFT_DEVICE void copy_elements(uint64_t address, char* tile) {
    SIFT_NO_UNROLL
    for (int row = 0; row < kTileRows; ++row) {
      const auto* source = reinterpret_cast<const T*>(dev::shuffle(address, row));
      auto* target = reinterpret_cast<T*>(tile + row * Tile<kHeadDim>::kRowBytes);
      for (int d = dev::lane(); d < kHeadDim; d += 32) {
        target[d] = source == nullptr ? T{} : source[d];
      }
    }
  }

  char* memory_;
  bool is_aligned_;
  uint64_t history_ = 0;  // the masks of the tiles in flight, 16 bits each, the newest lowest
};

}  // namespace sift
