// Scores as unsigned numbers that compare as they do, and the exact k-th largest of many of them.
//
// The k-th largest is found digit by digit from the top: a histogram of a digit says which bin it
// lies in and its rank there. Integers throughout, so in which order threads count is no matter.
#pragma once

#include <cstdint>

#include "decode/cuda/block_reduce.h"
#include "device.h"

namespace sift {

constexpr uint32_t kNoScore = 0;                // of a key that is not attended; below all scores
constexpr uint32_t kInvalidScore = 0xffffffff;  // of NaN and +inf; above all others

SIFT_DEVICE uint32_t ordered_score(float score) {
  if (!(score < dev::infinity())) return kInvalidScore;
  const uint32_t bits = dev::float_bits(score);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

SIFT_DEVICE float score_of(uint32_t ordered) {
  return dev::float_from_bits(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

struct Digit {
  int shift;
  int num_bits;
};
constexpr Digit kDigits[] = {{21, 11}, {10, 11}, {0, 10}};  // all 32 bits
constexpr int kNumBins = 1 << 11;

constexpr int kSelectThreads = 512;
constexpr int kSelectWarps = kSelectThreads / 32;

struct SelectMemory {
  uint32_t histogram[kNumBins];
  uint64_t sums[kSelectWarps];
  uint32_t counts[kSelectWarps];
  uint32_t digit;
  uint32_t rank;
};

// The rank-th largest, counted from 1, of scores[0, count) without those that are kNoScore; there
// must be as many. All threads of a block of kSelectThreads; `scores` is a multiple of 16 bytes and
// readable up to the next one.
class LargestScore {
 public:
  SIFT_DEVICE LargestScore(const uint32_t* scores, uint32_t count, uint32_t rank,
                           SelectMemory& memory)
      : scores_(scores), count_(count), rank_(rank), memory_(memory) {}

  // Finds the next digit. Shows every score to one thread's visit(score) on the way.
  template <class Visit>
  SIFT_DEVICE void narrow(Digit digit, Visit visit) {
    for (int bin = dev::thread(); bin < kNumBins; bin += kSelectThreads) memory_.histogram[bin] = 0;
    dev::sync_block();
    for_each([&](uint32_t score) {
      visit(score);
      if (score >> digit.shift >> digit.num_bits != found_) return;
      const uint32_t bin = score >> digit.shift & ((1u << digit.num_bits) - 1);
      dev::atomic_add(&memory_.histogram[bin], 1);
    });
    dev::sync_block();
    find_bin();
    found_ = found_ << digit.num_bits | memory_.digit;
    rank_ = memory_.rank;
  }

  // After all digits.
  SIFT_DEVICE uint32_t score() const { return found_; }

 private:
  template <class Visit>
  SIFT_DEVICE void for_each(Visit visit) const {
    struct alignas(16) Scores {
      uint32_t x[4] = {};
    };
    constexpr uint32_t kInFlight = 4;  // loads, to hide their latency
    for (uint32_t first = 0; first < count_; first += kInFlight * kSelectThreads * 4) {
      Scores scores[kInFlight];
      const auto begin_of = [&](uint32_t load) {
        return first + (load * kSelectThreads + static_cast<uint32_t>(dev::thread())) * 4;
      };
      SIFT_UNROLL
      for (uint32_t load = 0; load < kInFlight; ++load) {
        const uint32_t begin = begin_of(load);
        if (begin < count_) scores[load] = *reinterpret_cast<const Scores*>(scores_ + begin);
      }
      SIFT_UNROLL
      for (uint32_t load = 0; load < kInFlight; ++load) {
        SIFT_UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
          if (begin_of(load) + i < count_ && scores[load].x[i] != kNoScore)
            visit(scores[load].x[i]);
        }
      }
    }
  }

  // From the top bin down, a thread looks at a few neighbouring ones.
  SIFT_DEVICE void find_bin() const {
    constexpr int kBinsPerThread = kNumBins / kSelectThreads;
    const int top = kNumBins - 1 - dev::thread() * kBinsPerThread;
    uint32_t count = 0;
    for (int i = 0; i < kBinsPerThread; ++i) count += memory_.histogram[top - i];
    uint32_t above = sum_block(count, memory_.counts).before;
    for (int i = 0; i < kBinsPerThread; ++i) {
      const uint32_t in_bin = memory_.histogram[top - i];
      if (above < rank_ && rank_ <= above + in_bin) {  // so in one bin of one thread
        memory_.digit = static_cast<uint32_t>(top - i);
        memory_.rank = rank_ - above;
      }
      above += in_bin;
    }
    dev::sync_block();
  }

  const uint32_t* scores_;
  uint32_t count_;
  uint32_t rank_;       // among the scores that begin with found_
  uint32_t found_ = 0;  // digits
  SelectMemory& memory_;
};

}  // namespace sift
