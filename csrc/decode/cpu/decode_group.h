// decode of one group: the G query heads that share a KV head of a sequence.
//
// The keys are worked on in chunks:
//   score    s_hj = scale * q_h . k_j, then e_hj = exp(s_hj - m_h), m_h the chunk's maximum
//   merge    over the group's chunks: lse_h, and theta_h in units of the exponentials
//   select   the keys with e_hj above that for any h
//   load     their rows of V: the sums of e_hj v_j
//   combine  over the chunks again: out_h = sum of exp(m_h - lse_h) times those sums, residual
#pragma once

#include <cstdint>

#include "decode/cpu/level.h"
#include "decode/cpu/rows.h"
#include "decode/params.h"

namespace sift {

// The softmax of one query head over all its keys.
struct Head {
  double reference;  // exponentials are taken of score - reference
  double sum;        // of the exponentials, sink included
  double sink_mass;
  double threshold;  // theta * sum; below 0: keep every key
  double largest_p;  // of any key; below 0: no score is above -inf
  float largest_score;
};

// What the chunks of a group leave for one another.
struct GroupState {
  float* scores;        // [chunk][head][kScoreStride]: scores, their exponentials in place, and
                        //   when these are spent, the sums over V in the first D
  float* max;           // [chunk][head]: of the scores
  float* sum;           // [chunk][head]: of the exponentials
  float* mass;          // [chunk][head]: of the loaded keys' exponentials
  int32_t* num_loaded;  // [chunk]
  Head* heads;          // [head]
};

// The selected keys of a chunk.
struct RowList {
  int64_t group, chunk, count;
  const float* weights;  // [head][kScoreStride]: their exponentials
  float* own_weights;    // [head][kScoreStride]: where select writes these
  const void** rows;     // [kChunkKeys + kRowPadding]: their rows of V
};

// What a thread needs while it works on a chunk.
struct Scratch {
  int64_t queries_of = -1;   // the group whose queries are prepared
  float* queries;            // [head][kQueryStride]
  float* sums;               // [head][kScoreStride], the first D of each
  float* thresholds;         // [head]
  int32_t* positions;        // [kChunkKeys]
  int32_t* selected;         // [kScoreStride]
  const void** rows;         // [kChunkKeys + kRowPadding]: of K
  const float** parts;       // [max_chunks + 1]: the sums that a row of the output consists of
  double* part_weights;      // [max_chunks + 1]
  RowList lists[2];          // one is loaded while the next is on its way from memory
  int64_t num_selected = 0;  // lists, where they are taken in turns
};

class GroupDecoder {
 public:
  // `sequences` [B] is read when a group is decoded.
  GroupDecoder(const DecodeParams& params, const Level& level, const Sequence* sequences);

  // Of group b * HK + hk; 0 where it attends nothing.
  int64_t num_chunks(int64_t group) const;

  // Asks for the rows of a group that is decoded soon, if they are so few that the loops, which look
  // ahead within a group only, would wait for most of them.
  void expect(int64_t group, const Scratch& scratch) const;

  // In this order; of different chunks score, select and load may run at the same time. A selected
  // list asks for its first rows, so it is best loaded after the next one is selected.
  void score(int64_t group, int64_t chunk, const GroupState& state, Scratch& scratch) const;
  void merge(int64_t group, const GroupState& state) const;
  void select(int64_t group, int64_t chunk, const GroupState& state, Scratch& scratch,
              RowList& list) const;
  void load(const RowList& list, const GroupState& state, const Scratch& scratch) const;
  void combine(int64_t group, const GroupState& state, Scratch& scratch) const;

 private:
  float* chunk_scores(const GroupState& state, int64_t chunk) const {
    return state.scores + chunk * group_size_ * kScoreStride;
  }
  const Sequence& sequence(int64_t group) const { return sequences_[group / p_.num_kv_heads]; }
  int64_t first_head(int64_t group) const;  // as a row of [B, HQ]
  RowSource row_source(const KVLayout& kv, int64_t group) const;
  bool keeps_all(const GroupState& state) const;
  void load_largest(int64_t group, const GroupState& state, Scratch& scratch) const;
  void write_head(int64_t group, int64_t g, int64_t num_loaded, const GroupState& state,
                  const Scratch& scratch) const;

  const DecodeParams& p_;
  const Level& level_;
  const RowKernels& kernels_;
  const Sequence* sequences_;
  int64_t group_size_;
  int64_t element_bytes_;
};

}  // namespace sift
