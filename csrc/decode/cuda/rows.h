// Where a sequence's rows of K and V lie, and which of them are attended.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "device.h"

namespace sift {

// The keys of sequence b before `length`.
class SequenceKeys {
 public:
  SIFT_DEVICE SequenceKeys(const AttendedKeys& keys, int64_t b, int length)
      : keys_(keys), b_(b), length_(length) {}

  SIFT_DEVICE bool attends(int n) const {
    return is_unmasked(n) && (keys_.block_table == nullptr || block_of(n) >= 0);
  }

  // Row n of a KV head, nullptr when n is not attended.
  template <class T>
  SIFT_DEVICE const T* row(const KVLayout& layout, int64_t hk, int n) const {
    if (!is_unmasked(n)) return nullptr;
    const T* head = static_cast<const T*>(layout.data) + hk * layout.stride_h;
    if (keys_.block_table == nullptr) return head + b_ * layout.stride_b + n * layout.stride_n;
    const int64_t block = block_of(n);
    if (block < 0) return nullptr;
    return head + block * layout.stride_b + n % block_size() * layout.stride_n;
  }

 private:
  // In 32 bits, since 64-bit divisions are slow; no key lies beyond a larger block.
  SIFT_DEVICE int block_size() const {
    return static_cast<int>(keys_.block_size < INT32_MAX ? keys_.block_size : INT32_MAX);
  }

  SIFT_DEVICE bool is_unmasked(int n) const {
    return n < length_ &&
           (keys_.key_mask == nullptr || keys_.key_mask[b_ * keys_.key_mask_stride_b + n]);
  }

  // The block that holds key n of a paged cache, or -1.
  SIFT_DEVICE int64_t block_of(int n) const {
    const int64_t id = keys_.block_table[b_ * keys_.block_table_stride_b + n / block_size()];
    return id < keys_.num_blocks ? id : -1;
  }

  const AttendedKeys& keys_;
  int64_t b_;
  int length_;
};

// The length of sequence b within its capacity.
SIFT_DEVICE int sequence_length(const AttendedKeys& keys, int64_t b, int64_t capacity) {
  if (keys.seq_lens == nullptr) return static_cast<int>(capacity);
  const int64_t length = keys.seq_lens[b];
  return static_cast<int>(length < 0 ? 0 : length < capacity ? length : capacity);
}

}  // namespace sift
