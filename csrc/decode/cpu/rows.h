// Where the rows of one sequence lie, and which of them it attends.
#pragma once

#include <algorithm>
#include <cstdint>

#include "decode/params.h"

namespace sift {

struct Rows {
  Rows(const AttendedKeys& attended, int64_t batch_idx, int64_t capacity)
      : keys(attended), b(batch_idx), length(capacity) {
    if (keys.seq_lens != nullptr) {
      length = std::clamp<int64_t>(keys.seq_lens[b], 0, capacity);
    }
  }

  bool is_attended(int64_t n) const {
    if (keys.key_mask != nullptr && !keys.key_mask[b * keys.key_mask_stride_b + n]) return false;
    if (keys.block_table == nullptr) return true;
    const int64_t block = block_of(n);
    return block >= 0 && block < keys.num_blocks;
  }

  template <typename T>
  const T* row(const KVLayout& kv, int64_t hk, int64_t n) const {
    const T* base = static_cast<const T*>(kv.data) + hk * kv.stride_h;
    if (keys.block_table == nullptr) return base + b * kv.stride_b + n * kv.stride_n;
    return base + block_of(n) * kv.stride_b + n % keys.block_size * kv.stride_n;
  }

  int64_t block_of(int64_t n) const {
    return keys.block_table[b * keys.block_table_stride_b + n / keys.block_size];
  }

  AttendedKeys keys;
  int64_t b;
  int64_t length;
};

}  // namespace sift
