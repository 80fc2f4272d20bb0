// What one instruction-set level provides: the loops over rows, heads and dimensions.
//
// Rows of K and V come as lists of addresses, so the loops know nothing of strides, masks and
// pages. A list is followed by kRowPadding more addresses, which are read ahead. A level lives in a
// translation unit of its own, compiled with its own flags; it shares no inline code with others.
#pragma once

#include <cstdint>

namespace sift {

// Keys are worked on in chunks, counted from the first attended key: results are the same whatever
// the number of threads. A chunk's scores (4 heads: 16 KB) stay in L1.
inline constexpr int64_t kChunkKeys = 1024;
inline constexpr int64_t kBlockKeys = 64;
inline constexpr int64_t kMaxHeadDim = 256;

// Rows are asked for at most this many ahead. Rows of V are summed over in blocks of as many, first
// for some dimensions, then for others: measured best of 8 to 64, for sparse lists and dense ones
// (Zen 4). Asked for in this way, a list of every row is as fast as a stream, so nothing else is done
// where most rows are kept.
inline constexpr int64_t kRowsAhead = 64;
inline constexpr int64_t kRowPadding = kRowsAhead + 16;  // and a tile of keys

// Distance between heads, in floats: of scores, exponentials, weights or sums, and of queries.
inline constexpr int64_t kScoreStride = kChunkKeys + 16;  // whole tiles and vectors may be written
inline constexpr int64_t kQueryStride = kMaxHeadDim;

struct MaxSum {
  float max;  // of the scores; NaN is passed over here and shows in the sum
  float sum;  // of exp(score - max)
};

// The loops that depend on the element type.
struct RowKernels {
  // One query row into the form that `score` reads.
  void (*prepare_query)(const void* q, int64_t head_dim, float* query);

  // scores[h][i] = scale * queries[h] . rows[i], rounded up to whole tiles of keys.
  void (*score)(const void* const* rows, int64_t num_rows, const float* queries, int64_t num_heads,
                int64_t head_dim, float scale, float* scores);

  // sums[h][d] = sum over i of weights[h][i] * rows[i][d]; the sums lie kScoreStride apart. The first
  // kRowsAhead rows should have been asked for; it asks for the others.
  void (*accumulate)(const void* const* rows, int64_t num_rows, const float* weights,
                     int64_t num_heads, int64_t head_dim, float* sums);

  // out[d] = sum over i of weights[i] * parts[i][d], rounded to the element type.
  void (*write_row)(const float* const* parts, const double* weights, int64_t num_parts,
                    int64_t head_dim, void* out);
};

struct Level {
  const char* name;
  RowKernels rows[3];  // by DType

  // scores[i] = cap * tanh(scores[i] / cap)
  void (*softcap)(float* scores, int64_t num_keys, float cap);

  // exps[i] = exp(scores[i] - max); 0 up to a multiple of kBlockKeys. May work in place.
  MaxSum (*exponentiate)(const float* scores, int64_t num_keys, float* exps);

  // The keys i with !(exps[h][i] <= thresholds[h]) for any h: their indices, ascending, the
  // exponentials of all heads at them, and for each head the sum of those. Returns their number.
  int64_t (*select)(const float* exps, int64_t num_keys, int64_t num_heads, const float* thresholds,
                    int32_t* selected, float* weights, float* mass);
};

extern const Level kPortableLevel;
extern const Level kAvx2Level;
extern const Level kAvx512Level;
extern const Level kAvx512Bf16Level;

}  // namespace sift
