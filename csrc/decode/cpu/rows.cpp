#include "decode/cpu/rows.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace sift {
namespace {

// Calls visit(begin, end) for the stretches of positions in [begin, length) that have a row.
// Stops when it returns false.
template <typename Visit>
void for_each_mapped(const AttendedKeys& keys, int64_t b, int64_t begin, int64_t length,
                     const Visit& visit) {
  if (keys.block_table == nullptr) {
    if (begin < length) visit(begin, length);
    return;
  }
  const int32_t* table = keys.block_table + b * keys.block_table_stride_b;
  while (begin < length) {
    const int64_t block = begin / keys.block_size;
    const int64_t end = std::min(length, (block + 1) * keys.block_size);
    const bool is_mapped = table[block] >= 0 && table[block] < keys.num_blocks;
    if (is_mapped && !visit(begin, end)) return;
    begin = end;
  }
}

// key_mask of sequence b as bytes: whatever is not 0 is attended.
const uint8_t* mask_row(const AttendedKeys& keys, int64_t b) {
  if (keys.key_mask == nullptr) return nullptr;
  return reinterpret_cast<const uint8_t*>(keys.key_mask) + b * keys.key_mask_stride_b;
}

// Positions of the keys of a chunk.
void find_positions(const AttendedKeys& keys, int64_t b, const Sequence& sequence, int64_t chunk,
                    int32_t* positions) {
  const int64_t count = chunk_size(sequence, chunk);
  if (sequence.is_contiguous) {
    std::iota(positions, positions + count,
              static_cast<int32_t>(sequence.first + chunk * kChunkKeys));
    return;
  }
  const uint8_t* mask = mask_row(keys, b);
  int64_t found = 0;
  // The chunk's keys exist, so the search ends before any length.
  for_each_mapped(keys, b, sequence.chunk_starts[chunk], INT32_MAX,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t n = begin; n < end && found < count; ++n) {
                      positions[found] = static_cast<int32_t>(n);
                      found += mask == nullptr || mask[n] != 0;
                    }
                    return found < count;
                  });
}

// rows[i] = address_of(i)
template <typename AddressOf>
void fill_rows(int64_t count, const void** rows, const AddressOf& address_of) {
  for (int64_t i = 0; i < count; ++i) rows[i] = address_of(i);
}

}  // namespace

int64_t sequence_length(const AttendedKeys& keys, int64_t b, int64_t capacity) {
  if (keys.seq_lens == nullptr) return capacity;
  return std::clamp<int64_t>(keys.seq_lens[b], 0, capacity);
}

Sequence find_attended_keys(const AttendedKeys& keys, int64_t b, int64_t capacity,
                            int32_t* chunk_starts) {
  const int64_t length = sequence_length(keys, b, capacity);
  const uint8_t* mask = mask_row(keys, b);
  int64_t num_keys = 0;
  int64_t first = 0;
  int64_t last = -1;
  // Appends `count` attended keys; position_of(i) finds the i-th of them.
  const auto append = [&](int64_t count, const auto& position_of) {
    if (num_keys == 0) first = position_of(0);
    int64_t chunk = num_chunks(num_keys);
    for (; chunk_starts != nullptr && chunk * kChunkKeys < num_keys + count; ++chunk) {
      chunk_starts[chunk] = static_cast<int32_t>(position_of(chunk * kChunkKeys - num_keys));
    }
    num_keys += count;
  };
  for_each_mapped(keys, b, 0, length, [&](int64_t begin, int64_t end) {
    if (mask == nullptr) {
      append(end - begin, [&](int64_t i) { return begin + i; });
      last = end - 1;
      return true;
    }
    for (int64_t block = begin; block < end; block += kBlockKeys) {
      const int64_t size = std::min(kBlockKeys, end - block);
      uint8_t count = 0;
      for (int64_t i = 0; i < size; ++i) count += mask[block + i] != 0;
      if (count == 0) continue;
      append(count, [&](int64_t i) {
        int64_t n = block;
        for (int64_t rank = -1;; ++n) {
          rank += mask[n] != 0;
          if (rank == i) return n;
        }
      });
      last = block + size - 1;
    }
    return true;
  });
  while (mask != nullptr && last >= 0 && mask[last] == 0) --last;
  return {num_keys, last - first + 1 == num_keys, static_cast<int32_t>(first), chunk_starts};
}

void find_rows(const RowSource& source, int64_t chunk, const int32_t* selected, int64_t count,
               int32_t* positions, const void** rows) {
  const KVLayout& kv = source.kv;
  const AttendedKeys& keys = source.keys;
  const Sequence& sequence = source.sequence;
  const int64_t b = source.b;
  const char* head =
      static_cast<const char*>(kv.data) + source.hk * kv.stride_h * source.element_bytes;
  const int64_t row_bytes = kv.stride_n * source.element_bytes;
  const int64_t outer_bytes = kv.stride_b * source.element_bytes;
  int64_t num_filled = count;
  if (keys.block_table == nullptr && sequence.is_contiguous) {
    const char* first = head + b * outer_bytes + (sequence.first + chunk * kChunkKeys) * row_bytes;
    if (selected == nullptr) {
      num_filled = std::min(count + kRowPadding, sequence.num_keys - chunk * kChunkKeys);
      fill_rows(num_filled, rows, [=](int64_t i) { return first + i * row_bytes; });
    } else {
      fill_rows(count, rows, [=](int64_t i) { return first + selected[i] * row_bytes; });
    }
  } else {
    find_positions(keys, b, sequence, chunk, positions);
    for (int64_t i = 0; selected != nullptr && i < count; ++i) {
      positions[i] = positions[selected[i]];  // selected[i] >= i
    }
    if (keys.block_table == nullptr) {
      const char* base = head + b * outer_bytes;
      fill_rows(count, rows, [=](int64_t i) { return base + positions[i] * row_bytes; });
    } else {
      const int32_t* table = keys.block_table + b * keys.block_table_stride_b;
      const auto fill = [&](const auto& block_of) {
        fill_rows(count, rows, [&](int64_t i) {
          const int64_t block = block_of(positions[i]);
          const int64_t within = positions[i] - block * keys.block_size;
          return head + table[block] * outer_bytes + within * row_bytes;
        });
      };
      const auto block_size = static_cast<uint32_t>(keys.block_size);
      if (std::has_single_bit(block_size)) {
        const int shift = std::countr_zero(block_size);
        fill([=](int32_t n) { return n >> shift; });
      } else {
        fill([=](int32_t n) { return static_cast<uint32_t>(n) / block_size; });
      }
    }
  }
  std::fill_n(rows + num_filled, count + kRowPadding - num_filled, rows[num_filled - 1]);
}

}  // namespace sift
