// Where a sequence's rows of K and V lie, and which of them are attended.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "device.h"

namespace sift {

// The keys of one sequence.
struct SequenceKeys {
  const AttendedKeys& keys;
  int64_t b;
  int length;  // keys at or beyond it are not attended

  // The block that holds key n of a paged cache, or -1.
  SIFT_DEVICE int64_t block_of(int n) const {
    const int64_t id = keys.block_table[b * keys.block_table_stride_b + n / keys.block_size];
    return id < keys.num_blocks ? id : -1;
  }

  SIFT_DEVICE bool attends(int n) const {
    if (n >= length) return false;
    if (keys.key_mask != nullptr && !keys.key_mask[b * keys.key_mask_stride_b + n]) return false;
    return keys.block_table == nullptr || block_of(n) >= 0;
  }

  // Row n of a KV head, nullptr when n is not attended.
  template <class T>
  SIFT_DEVICE const T* row(const KVLayout& layout, int64_t hk, int n) const {
    if (!attends(n)) return nullptr;
    const T* head = static_cast<const T*>(layout.data) + hk * layout.stride_h;
    if (keys.block_table == nullptr) return head + b * layout.stride_b + n * layout.stride_n;
    return head + block_of(n) * layout.stride_b + n % keys.block_size * layout.stride_n;
  }
};

// The length of sequence b within its capacity.
SIFT_DEVICE int sequence_length(const AttendedKeys& keys, int64_t b, int64_t capacity) {
  if (keys.seq_lens == nullptr) return static_cast<int>(capacity);
  const int64_t length = keys.seq_lens[b];
  return static_cast<int>(length < 0 ? 0 : length < capacity ? length : capacity);
}

}  // namespace sift
