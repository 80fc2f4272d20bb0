// Which keys a sequence attends and where its rows of K and V lie.
//
// The kernels count attended keys from 0 (ranks). A chunk is kChunkKeys consecutive ranks, so
// padding on the left and masked keys in between leave no trace in the results.
#pragma once

#include <cstdint>

#include "decode/cpu/level.h"
#include "decode/params.h"

namespace sift {

inline int64_t num_chunks(int64_t num_keys) { return (num_keys + kChunkKeys - 1) / kChunkKeys; }

// The attended keys of one sequence.
struct Sequence {
  int64_t num_keys;             // S
  bool is_contiguous;           // the key of rank i is at position first + i
  int32_t first;                // position of the key of rank 0
  const int32_t* chunk_starts;  // [chunk]: position of its first key; unused if contiguous
};

// Writes chunk_starts, up to one per kChunkKeys of capacity; it may be nullptr where nothing is
// masked or paged.
Sequence find_attended_keys(const AttendedKeys& keys, int64_t b, int64_t capacity,
                            int32_t* chunk_starts);

// Length of sequence b before masks.
int64_t sequence_length(const AttendedKeys& keys, int64_t b, int64_t capacity);

// Number of keys of a chunk, at most kChunkKeys.
inline int64_t chunk_size(const Sequence& sequence, int64_t chunk) {
  const int64_t rest = sequence.num_keys - chunk * kChunkKeys;
  return rest < kChunkKeys ? rest : kChunkKeys;
}

// One KV head of one sequence.
struct RowSource {
  const KVLayout& kv;
  const AttendedKeys& keys;
  const Sequence& sequence;
  int64_t b;
  int64_t hk;
  int64_t element_bytes;
};

// Addresses of rows of a chunk: of the `count` selected ones, ascending, or with nullptr of the first
// `count`. Then kRowPadding more, of rows that come next or the last one again. `positions`
// [kChunkKeys] is scratch.
void find_rows(const RowSource& source, int64_t chunk, const int32_t* selected, int64_t count,
               int32_t* positions, const void** rows);

}  // namespace sift
