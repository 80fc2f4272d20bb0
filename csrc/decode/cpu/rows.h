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

// Positions of the keys of a chunk. Returns their number, at most kChunkKeys.
int64_t key_positions(const AttendedKeys& keys, int64_t b, const Sequence& sequence, int64_t chunk,
                      int32_t* positions);

// Addresses of rows of one KV head, followed by kRowPadding copies of the last one.
void row_addresses(const KVLayout& kv, const AttendedKeys& keys, int64_t element_bytes, int64_t b,
                   int64_t hk, const int32_t* positions, int64_t num_rows, const void** rows);

}  // namespace sift
