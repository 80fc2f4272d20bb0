// Who decodes what, and in which order.
//
// A sequence's keys are cut into splits whose size follows from its length alone, so that neither
// the batch nor the machine changes a bit of the result. Items, a split of a unit (some heads of one
// KV head) of a sequence, are dealt out to the blocks of the grid.
//
// Sequences are taken in waves of about wave_keys keys: the scores of a wave are read again soon
// after they were written, out of the L2 cache.
#pragma once

#include <cstdint>

#include "decode/cuda/block_reduce.h"
#include "decode/cuda/divide_up.h"
#include "decode/cuda/rows.h"
#include "decode/params.h"
#include "device.h"

namespace sift {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMinSplitKeys = 256;
constexpr int kMaxSplits = 128;  // per sequence; the combination reads one partial result of each
// Loading takes fewer, larger splits than scoring: what it reads is a fraction, and a block's
// latencies from scores to rows of V come once per split.
constexpr int kScoreSplitsPerLoadSplit = 4;

// Sequences per launch; one thread plans one sequence.
constexpr int kMaxBatch = kThreads;

struct Splits {
  int keys;   // per split
  int count;  // of a sequence
};

SIFT_DEVICE Splits score_splits(int length) {
  const int factor = divide_up(length, kMinSplitKeys * kMaxSplits);
  const int keys = kMinSplitKeys * (factor > 1 ? factor : 1);
  return {keys, divide_up(length, keys)};
}

SIFT_DEVICE Splits load_splits(int length) {
  const int keys = score_splits(length).keys * kScoreSplitsPerLoadSplit;
  return {keys, divide_up(length, keys)};
}

// What a sequence of so many keys takes of a wave.
template <class Length>
constexpr Length padded_keys(Length length) {
  return divide_up(length, kMinSplitKeys) * kMinSplitKeys;
}

// One split of one unit of one sequence.
struct Item {
  int b;
  int unit;
  int begin;  // keys [begin, end) of the sequence
  int end;
  int first_score_item;  // of the unit, counted from the first of the wave
  int score_split;       // the (first) split of scoring that this item covers
};

// Running sums over the sequences of a launch, in shared memory.
struct Schedule {
  int length[kMaxBatch];
  int first_key[kMaxBatch + 1];  // padded
  int first_score_item[kMaxBatch + 1];
  int first_load_item[kMaxBatch + 1];
  int num_waves;
};

struct Wave {
  int begin;  // sequences [begin, end)
  int end;
};

// By all threads of the block; ends with sync_block.
SIFT_DEVICE void make_schedule(const DecodeParams& p, int num_units, int wave_keys,
                               Schedule& schedule) {
  const int b = dev::thread();
  const int batch = static_cast<int>(p.batch);
  if (b < batch) {
    const int length = sequence_length(p.keys, b, p.capacity);
    schedule.length[b] = length;
    schedule.first_key[b + 1] = padded_keys(length);
    schedule.first_score_item[b + 1] = score_splits(length).count * num_units;
    schedule.first_load_item[b + 1] = load_splits(length).count * num_units;
  }
  dev::sync_block();
  if (dev::warp() < 3) {  // one running sum per warp, 32 sequences at a time
    int* const sum = dev::warp() == 0   ? schedule.first_key
                     : dev::warp() == 1 ? schedule.first_score_item
                                        : schedule.first_load_item;
    int before = 0;
    for (int first = 0; first < batch; first += 32) {
      const int i = first + dev::lane();
      const int x = running_sum(i < batch ? sum[i + 1] : 0);
      if (i < batch) sum[i + 1] = before + x;
      before += dev::shuffle(x, 31);
    }
    if (dev::lane() == 0) sum[0] = 0;
  }
  dev::sync_block();
  if (dev::thread() == 0) schedule.num_waves = schedule.first_key[batch - 1] / wave_keys + 1;
  dev::sync_block();
}

// The first index in [begin, end) whose sum is above x, or end. Sums never fall.
SIFT_DEVICE int first_above(const int* sums, int begin, int end, int x) {
  while (begin < end) {  // all before begin are at most x, all from end on above
    const int middle = (begin + end) / 2;
    if (sums[middle] > x) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// The sequences whose first key lies in [wave, wave + 1) * wave_keys; a long one fills several
// waves and leaves the others empty.
SIFT_DEVICE Wave wave_at(const Schedule& schedule, int batch, int wave, int wave_keys) {
  return {first_above(schedule.first_key, 0, batch, wave * wave_keys - 1),
          first_above(schedule.first_key, 0, batch, (wave + 1) * wave_keys - 1)};
}

// Item `index` of a launch, of a sequence of the wave; first_item is the running sum that goes with
// kSplitsOf.
template <Splits (*kSplitsOf)(int)>
SIFT_DEVICE Item item_at(const Schedule& schedule, const Wave& wave, const int* first_item,
                         int index) {
  const int b = first_above(first_item, wave.begin, wave.end, index) - 1;
  const int length = schedule.length[b];
  const Splits splits = kSplitsOf(length);
  const int unit = (index - first_item[b]) / splits.count;
  const int split = (index - first_item[b]) % splits.count;
  const Splits scored = score_splits(length);
  const int begin = split * splits.keys;
  const int end = begin + splits.keys;
  return {.b = b,
          .unit = unit,
          .begin = begin,
          .end = end < length ? end : length,
          .first_score_item = schedule.first_score_item[b] - schedule.first_score_item[wave.begin] +
                              unit * scored.count,
          .score_split = begin / scored.keys};
}

}  // namespace sift
