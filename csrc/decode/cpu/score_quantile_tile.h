// score_quantile of one tile: a few query rows of a KV head, by all heads of its group.
//
// Chunk by chunk of the keys, the tile's scores join their softmax and pass through the largest so
// far, among which the quantile is found in the end. The keys of a tile may be cut into pieces that
// run at the same time.
#pragma once

#include <atomic>
#include <cstdint>

#include "decode/cpu/largest.h"
#include "decode/cpu/level.h"
#include "decode/cpu/rows.h"
#include "decode/params.h"

namespace sift {

// The same for all tiles.
struct TileShape {
  int64_t group_size = 0;  // a query is one head of one row
  int64_t num_rows = 0;
  int64_t num_pieces = 1;
  int64_t max_chunks = 0;  // of the longest row
  int64_t capacity = 0;    // for the largest scores of a query in a piece

  int64_t num_queries() const { return num_rows * group_size; }
};

// The rank of the quantile, counted from the largest of num_keys probabilities: at least 1.
int64_t rank_from_top(double quantile, int64_t num_keys);

// What the pieces of a tile leave for the last of them.
struct TileState {
  MaxSum* softmax;                  // [query][max_chunks]
  Largest* largest;                 // [query][piece]
  float* values;                    // [query][piece][capacity]: the largest scores
  std::atomic<int64_t>* remaining;  // pieces that are not done, where there are several
};

// What a thread needs while it works on a piece.
struct TileScratch {
  float* queries;      // [query][kQueryStride]
  float* scores;       // [query][kScoreStride]: of a chunk
  float* exps;         // [kScoreStride]
  int32_t* positions;  // [kChunkKeys]
  const void** rows;   // [kChunkKeys + kRowPadding]
};

class QuantileTile {
 public:
  // Query rows [begin, end), at most shape.num_rows, against the rows of K.
  QuantileTile(const ScoreQuantileParams& params, const Level& level, const TileShape& shape,
               const RowSource& k, int64_t begin, int64_t end);

  // Every piece, then the quantiles.
  void score(int64_t piece, const TileState& state, const TileScratch& scratch) const;
  void write_quantiles(const TileState& state) const;

 private:
  int64_t head(int64_t g) const { return k_.hk * shape_.group_size + g; }
  int64_t query(int64_t r, int64_t g) const { return (r - begin_) * shape_.group_size + g; }
  int64_t length(int64_t r) const;
  void start(int64_t piece, const TileState& state, const TileScratch& scratch) const;
  void score_chunk(int64_t chunk, int64_t piece, const TileState& state,
                   const TileScratch& scratch) const;
  float quantile(int64_t query, int64_t length, const float* sink, const TileState& state) const;

  const ScoreQuantileParams& p_;
  const Level& level_;
  const RowKernels& kernels_;
  const TileShape& shape_;
  const RowSource k_;
  int64_t begin_;
  int64_t end_;
  int64_t max_length_ = 0;
};

}  // namespace sift
