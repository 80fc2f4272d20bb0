// What one launch of the decode kernel gets: the call, and the host's plan of workspace and shared
// memory.
//
// A unit is what a block works on at a time: up to 16 query heads of one KV head (all of them in
// every common model; a larger group takes several units, each of which reads K and V again).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "decode/cuda/schedule.h"
#include "decode/cuda/score_scale.h"
#include "decode/cuda/tiles.h"
#include "decode/params.h"

namespace sift {

// Of one split, or of all keys, and one head: maximum of the scores in log2 units, sum of
// exp2(score - max). No keys: -inf, 0.
struct Softmax {
  float max;
  float sum;
};

// In global memory, of all waves in flight. Item-wise arrays: [slot][item of the wave][head of the
// unit]; items are those of scoring, and loading uses the first that it covers.
struct DecodeWorkspace {
  float* scores = nullptr;     // [slot][key of the wave * HQ]: per sequence [HK, padded N, G], log2
  Softmax* softmax = nullptr;  // [slot][item][unit_heads]
  int* num_attended = nullptr;  // [slot][item]
  float* partial = nullptr;     // [slot][item][unit_heads][D]
  float* kept_mass = nullptr;   // [slot][item][unit_heads]
  int* num_loaded = nullptr;    // [slot][item]
};

struct DecodePlan {
  DecodeWorkspace workspace;
  int wave_keys = 0;       // see schedule.h
  int64_t slot_keys = 0;   // a wave and the sequence that overhangs it
  int64_t slot_items = 0;  // items of scoring
  int num_slots = 0;       // 3, or 1 when one wave takes the whole batch
  int group_size = 0;      // G
  int units_per_head = 0;
  int unit_heads = 0;  // query heads per unit; the last one of a group may have fewer
  int piece_keys = 0;  // keys whose scores are selected from at a time, a multiple of 32
  int is_aligned = 0;  // rows of K and V begin at multiples of 16 bytes
  int is_q_aligned = 0;
  ScoreScale score_scale;
  int scores_offset = 0;  // in shared memory, see SharedMemory
  int list_offset = 0;
  int words_offset = 0;
  int laws_offset = 0;
  int shared_bytes = 0;
};

struct DecodeArguments {
  DecodeParams params;
  DecodePlan plan;
};
static_assert(std::is_trivially_copyable_v<DecodeArguments>);

// As many as fit, so that three blocks share a multiprocessor.
template <int kHeadDim>
inline constexpr int kRingStages = std::clamp(54 * 1024 / (kWarps * Tile<kHeadDim>::kBytes), 2, 4);

// What decides which keys a head wants, in log2 units; read together.
struct alignas(16) HeadLaw {
  float lse;        // of all keys and the sink; 0 when no key has a probability
  float threshold;  // on p, at most 0; NaN: every key passes, +inf: none has a probability
  float highest;    // the largest p

  // Written so that NaN passes: it has to reach the result.
  SIFT_DEVICE bool passes(float log2_p) const { return !(log2_p <= threshold); }
  SIFT_DEVICE bool is_empty() const { return threshold == dev::infinity(); }
};

// Groups of a launch, (sequence, KV head), of which a block remembers whether they keep every key.
constexpr int kKnownGroups = 4096;

// How a block uses its shared memory. The first part's size is known to the compiler, the second
// depends on the group and is planned by the host.
template <int kHeadDim, int kHeadBlocks>
struct SharedMemory {
  static constexpr int kUnitHeads = 8 * kHeadBlocks;
  static constexpr int kRingBytes = kWarps * kRingStages<kHeadDim> * Tile<kHeadDim>::kBytes;

  struct Fixed {
    alignas(16) char ring[kRingBytes];
    alignas(16) char q[kUnitHeads * Tile<kHeadDim>::kRowBytes];
    Schedule schedule;
    uint32_t exact_groups[kKnownGroups / 32];  // see keeps_all
    Softmax softmax[kWarps][kUnitHeads];
    float kept_mass[kWarps][kUnitHeads];
    int count[kWarps];
  };
  // Between phases the ring serves to bring the results of the warps together.
  static constexpr int kWarpOutBytes = kUnitHeads * kHeadDim * 4;
  static_assert(kWarps * kWarpOutBytes <= kRingBytes, "the warps' results must fit the ring");

  explicit SIFT_DEVICE SharedMemory(const DecodePlan& plan, char* memory = dev::shared_memory())
      : fixed(*reinterpret_cast<Fixed*>(memory)),
        scores(reinterpret_cast<float*>(memory + plan.scores_offset)),
        list(reinterpret_cast<uint16_t*>(memory + plan.list_offset)),
        words(reinterpret_cast<uint32_t*>(memory + plan.words_offset)),
        laws(reinterpret_cast<HeadLaw*>(memory + plan.laws_offset)) {}

  SIFT_DEVICE char* ring_of_warp() const {
    return fixed.ring + dev::warp() * (kRingBytes / kWarps);
  }
  SIFT_DEVICE float* out_of_warp(int warp) const {  // [kUnitHeads][kHeadDim]
    return reinterpret_cast<float*>(fixed.ring + warp * kWarpOutBytes);
  }

  Fixed& fixed;
  float* scores;    // [piece_keys][G]
  uint16_t* list;   // [piece_keys]    the keys of the piece to be loaded, ascending
  uint32_t* words;  // [piece_keys / 32]   the same as a bit set
  HeadLaw* laws;    // [G]
};

}  // namespace sift
