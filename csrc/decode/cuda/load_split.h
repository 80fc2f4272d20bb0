// Second phase: with the true log-sum-exp of every head, the rows of V whose probability exceeds a
// threshold are found, gathered and summed, for one split of keys.
//
// A block takes the scores of a piece of the split into shared memory, marks the keys that any head
// of the group wants, lists them in ascending order, and deals the list's tiles of 16 rows out to
// its warps.
#pragma once

#include <cstdint>

#include "decode/cuda/block_reduce.h"
#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/tile_products.h"
#include "decode/cuda/unit.h"
#include "device.h"

namespace sift {

// Which keys of a split are loaded.
enum class Selection {
  kNone,       // no head counts, or only the best key does and it is in another split
  kThreshold,  // those above the threshold of a head
  kBest        // nothing passes: the first key of those with the group's largest probability
};

// The largest probability of a group.
struct GroupBest {
  float log2_p;
  bool passes;    // the threshold of its head, or another head's largest does
  bool is_empty;  // no key has a probability
};

// Fills shared.laws; by all threads. The splits of the group's units follow each other from
// `group_item` on.
template <class Shared>
SIFT_DEVICE GroupBest find_laws(const DecodeArguments& arguments, int64_t b, int hk,
                                int64_t group_item, int num_splits, const Shared& shared) {
  const DecodeParams& params = arguments.params;
  const DecodePlan& plan = arguments.plan;
  for (int g = dev::warp(); g < plan.group_size; g += kWarps) {
    const int64_t h = static_cast<int64_t>(hk) * plan.group_size + g;
    const int64_t i = b * params.num_q_heads + h;
    const float log_alpha = params.log_alpha[i];
    const float beta = params.beta[i];
    const HeadTotal total = head_total(plan, group_item + g / plan.unit_heads * num_splits,
                                       num_splits, g % plan.unit_heads);
    const float lse =
        total.is_empty() ? 0.0f : log_sum_exp(total.softmax, sink_of(params.sinks, h));
    float theta = log_alpha * kLog2E - beta * dev::log2(static_cast<float>(total.num_attended));
    if (theta > 0) theta = 0;
    if (theta == -dev::infinity()) theta = dev::nan();
    if (total.is_empty()) theta = dev::infinity();
    if (dev::lane() == 0) {
      shared.laws[g] = {.lse = lse, .threshold = theta, .highest = total.softmax.max - lse};
    }
  }
  dev::sync_block();
  GroupBest best = {.log2_p = -dev::infinity(), .passes = false, .is_empty = true};
  for (int g = 0; g < plan.group_size; ++g) {
    const HeadLaw& law = shared.laws[g];
    if (law.is_empty()) continue;
    best.is_empty = false;
    best.passes |= law.passes(law.highest);
    best.log2_p = larger(best.log2_p, law.highest);
  }
  return best;
}

// The first split of scoring in which a key has the group's largest probability.
template <class Shared>
SIFT_DEVICE int split_of_best(const DecodePlan& plan, float log2_p, int64_t group_item,
                              int num_splits, const Shared& shared) {
  static_assert(kMaxSplits == kThreads);
  const int split = dev::thread();
  bool is_best = false;
  for (int g = 0; g < plan.group_size && split < num_splits; ++g) {
    const int64_t item = group_item + g / plan.unit_heads * num_splits + split;
    const float max = plan.workspace.softmax[item * plan.unit_heads + g % plan.unit_heads].max;
    is_best |= !shared.laws[g].is_empty() && max - shared.laws[g].lse == log2_p;
  }
  const uint32_t found = dev::ballot(is_best);
  if (dev::lane() == 0) shared.fixed.count[dev::warp()] = static_cast<int>(found);
  dev::sync_block();
  for (int warp = 0; warp < kWarps; ++warp) {
    const auto bits = static_cast<uint32_t>(shared.fixed.count[warp]);
    if (bits != 0) return warp * 32 + dev::find_first_set(bits);
  }
  return num_splits;
}

// Lists which of the piece's `num_keys` keys are loaded; returns how many. The scores are in shared
// memory, `passes(law, log2_p)` says which a head wants. By all threads, ends with sync_block.
template <class Shared, class Passes>
SIFT_DEVICE int list_keys(const DecodePlan& plan, const SequenceKeys& keys, int first_key,
                          int num_keys, const Shared& shared, Passes passes) {
  const int num_words = plan.piece_keys / 32;
  for (int word = dev::warp(); word < num_words; word += kWarps) {
    const int key = word * 32 + dev::lane();
    bool keep = false;
    const auto ask = [&](int g, float score) {
      const HeadLaw law = shared.laws[g];
      keep |= passes(law, score - law.lse);
    };
    if (key < num_keys && keys.attends(first_key + key)) {
      const float* scores = shared.scores + key * plan.group_size;
      if (plan.group_size % 4 == 0) {  // lanes would meet in few banks if they took one at a time
        struct alignas(16) Scores {
          float x[4];
        };
        for (int g = 0; g < plan.group_size; g += 4) {
          const Scores four = *reinterpret_cast<const Scores*>(scores + g);
          for (int i = 0; i < 4; ++i) ask(g + i, four.x[i]);
        }
      } else {
        for (int g = 0; g < plan.group_size; ++g) ask(g, scores[g]);
      }
    }
    const uint32_t bits = dev::ballot(keep);
    if (dev::lane() == 0) shared.words[word] = bits;
  }
  dev::sync_block();
  // num_words <= 32: a lane per word finds how many keys come before it.
  const int lane = dev::lane();
  const int count = lane < num_words ? dev::population_count(shared.words[lane]) : 0;
  const int before_next = running_sum(count);
  const int total = dev::shuffle(before_next, 31);
  for (int word = dev::warp(); word < num_words; word += kWarps) {
    const int before = dev::shuffle(before_next - count, word);
    const uint32_t bits = shared.words[word];
    if (bits >> lane & 1) {
      shared.list[before + dev::population_count(bits & ((1u << lane) - 1))] =
          static_cast<uint16_t>(word * 32 + lane);
    }
  }
  dev::sync_block();
  return total;
}

// `group_item`: the slot item of the first split of the group's first unit. `slot_item`: that under
// which the result is stored.
template <class T, int kHeadDim, int kHeadBlocks>
SIFT_DEVICE void load_split(const DecodeArguments& arguments, const Item& item, const Unit& unit,
                            int64_t group_item, int num_splits, int64_t slot_item,
                            const float* scores,
                            const SharedMemory<kHeadDim, kHeadBlocks>& shared) {
  const DecodeParams& params = arguments.params;
  const DecodePlan& plan = arguments.plan;
  auto& fixed = shared.fixed;
  const auto start_piece = [&](int first_key) {  // its scores, to shared memory
    const int left = item.end - first_key;
    const int num_scores = (left < plan.piece_keys ? left : plan.piece_keys) * plan.group_size;
    const float* piece = scores + static_cast<int64_t>(first_key) * plan.group_size;
    for (int i = dev::thread() * 4; i < num_scores; i += kThreads * 4) {
      dev::copy_async_16(shared.scores + i, piece + i, true);
    }
    dev::commit_copies();
  };
  start_piece(item.begin);
  const GroupBest best = find_laws(arguments, item.b, unit.hk, group_item, num_splits, shared);
  auto selection = best.is_empty ? Selection::kNone : Selection::kThreshold;
  if (!best.is_empty && !best.passes) {
    const int split = split_of_best(plan, best.log2_p, group_item, num_splits, shared);
    const bool is_here =
        split >= item.score_split && split < item.score_split + kScoreSplitsPerLoadSplit;
    selection = is_here ? Selection::kBest : Selection::kNone;
  }

  const SequenceKeys keys{params.keys, item.b, item.end};
  TileRing<T, kHeadDim, kRingStages<kHeadDim>, Reads::kOnce> ring(shared.ring_of_warp(),
                                                                  plan.is_aligned);
  OutBlocks<kHeadDim, kHeadBlocks> out;
  // A thread weighs rows for head lane / 4 of each block.
  struct Head {
    int in_group;
    bool has_weights;
    float lse;
    float kept_mass;  // of this thread's rows
  } heads[kHeadBlocks];
  SIFT_UNROLL
  for (int block = 0; block < kHeadBlocks; ++block) {
    const int head = block * 8 + dev::lane() / 4;
    const int g = unit.first_in_group + (head < unit.num_heads ? head : 0);
    heads[block] = {.in_group = g,
                    .has_weights = head < unit.num_heads && !shared.laws[g].is_empty(),
                    .lse = shared.laws[g].lse,
                    .kept_mass = 0};
  }
  int num_loaded = 0;

  const int end = selection == Selection::kNone ? item.begin : item.end;
  for (int first_key = item.begin; first_key < end; first_key += plan.piece_keys) {
    if (first_key > item.begin) start_piece(first_key);
    const int num_keys = end - first_key < plan.piece_keys ? end - first_key : plan.piece_keys;
    dev::wait_copies<0>();
    dev::sync_block();

    int count;
    if (selection == Selection::kBest) {
      count =
          list_keys(plan, keys, first_key, num_keys, shared, [&](const HeadLaw& law, float log2_p) {
            return log2_p == best.log2_p && !law.is_empty();
          });
      count = count > 0 ? 1 : 0;
    } else {
      count = list_keys(plan, keys, first_key, num_keys, shared,
                        [](const HeadLaw& law, float log2_p) { return law.passes(log2_p); });
    }

    const int num_tiles = (count + kTileRows - 1) / kTileRows;
    const int my_tiles = (num_tiles - dev::warp() + kWarps - 1) / kWarps;
    const auto first_row = [&](int tile) { return (tile * kWarps + dev::warp()) * kTileRows; };
    ring.stream(
        my_tiles,
        [&](int tile, int row) {
          const int i = first_row(tile) + row;
          return i < count ? keys.row<T>(params.v, unit.hk, first_key + shared.list[i]) : nullptr;
        },
        [&](int tile_idx, const char* tile, RowMask) {
          Weights weights[kHeadBlocks];
          SIFT_UNROLL
          for (int block = 0; block < kHeadBlocks; ++block) {
            Head& head = heads[block];
            const auto weight = [&](int row) {
              const int i = first_row(tile_idx) + row;
              if (!head.has_weights || i >= count) return 0.0f;
              const float score = shared.scores[shared.list[i] * plan.group_size + head.in_group];
              return dev::exp2(score - head.lse);
            };
            SIFT_UNROLL
            for (int half = 0; half < 2; ++half) {
              const int row = dev::lane() % 4 * 2 + half * 8;
              const float first = weight(row);
              const float second = weight(row + 1);
              head.kept_mass += first + second;
              split_weights<T>(first, second, weights[block].high[half], weights[block].low[half]);
            }
          }
          accumulate_tile<T>(tile, weights, out);
        });
    num_loaded += count;
    dev::sync_block();
    if (selection == Selection::kBest && count > 0) break;
  }

  for (int block = 0; block < kHeadBlocks; ++block) {
    float mass = heads[block].kept_mass;
    for (int lanes = 1; lanes < 4; lanes *= 2) mass += dev::shuffle_xor(mass, lanes);
    if (dev::lane() % 4 == 0) {
      fixed.kept_mass[dev::warp()][block * 8 + dev::lane() / 4] = mass;
    }
  }
  dev::wait_copies<0>();  // where nothing was selected, the first piece
  if (dev::thread() == 0) plan.workspace.num_loaded[slot_item] = num_loaded;
  dev::sync_block();
  if (num_loaded > 0) {
    if (dev::thread() < unit.num_heads) {
      float sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += fixed.kept_mass[warp][dev::thread()];
      plan.workspace.kept_mass[slot_item * plan.unit_heads + dev::thread()] = sum;
    }
    store_partial(shared, out, unit.num_heads,
                  plan.workspace.partial + slot_item * plan.unit_heads * kHeadDim,
                  [](int, int) { return 1.0f; });
  }
  dev::sync_block();
}

}  // namespace sift
