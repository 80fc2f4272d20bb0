// Finds data races: two threads touch the same bytes, one of them writes, and no sync_warp, sync_block
// or sync_grid that both take part in lies between.
#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "random.h"

namespace sift::simt {

// Which thread, and how many barriers there were of its warp, its block and the grid. A barrier of
// the grid counts as one of every block, a barrier of a block as one of its warps.
struct Moment {
  int thread;  // counted through the grid
  int block;
  uint32_t grid_time;
  uint32_t block_time;
  uint32_t warp_time;
};

enum class Action : uint8_t { kRead, kWrite, kAtomic, kCopy };  // kCopy: written until it is done

struct Access {
  Moment moment;
  uint32_t code;  // where in the program
  Action action;
  uint8_t bytes;  // of the word, a bit each; 0: no access
};

// The accesses to four bytes that later ones may race with.
class Word {
 public:
  // Remembers `access`, or returns the earlier one that it races with.
  const Access* add(const Access& access, Random& random);
  void finish_copy(const Moment& now);

 private:
  static constexpr int kAccesses = 4;
  Access accesses_[kAccesses] = {};
};

// The shared memory of a block, by offset.
class SharedWords {
 public:
  explicit SharedWords(int num_bytes) : words_(static_cast<size_t>(num_bytes + 3) / 4) {}
  Word* find(uintptr_t word, Action) { return &words_[word]; }
  void finish_copy(uintptr_t offset, size_t num_bytes, const Moment& now) {
    for (size_t i = 0; i < num_bytes / 4; ++i) words_[offset / 4 + i].finish_copy(now);
  }
  void clear() { std::fill(words_.begin(), words_.end(), Word()); }

 private:
  std::vector<Word> words_;
};

// The global memory, by address. Most of it is only read; what is watched are pages from the first
// write on, in this launch or the one before, which a test is likely to have repeated.
class GlobalWords {
 public:
  GlobalWords() : may_watch_(written_before_) {}
  ~GlobalWords() { written_before_ = written_; }
  GlobalWords(const GlobalWords&) = delete;
  GlobalWords& operator=(const GlobalWords&) = delete;

  // Quick, and false for most of what is only read.
  bool may_watch(uintptr_t address) const {
    return may_watch_[address / sizeof(uint32_t) / kPageWords % kHashes];
  }
  Word* find(uintptr_t word, Action action);

 private:
  static constexpr size_t kPageWords = 64;
  static constexpr size_t kHashes = 1 << 16;
  using PageSet = std::bitset<kHashes>;  // by hash

  static inline PageSet written_before_;
  PageSet written_;
  PageSet may_watch_;
  std::unordered_map<uintptr_t, std::array<Word, kPageWords>> pages_;
};

// Adds an access to `num_bytes` from `address` on; returns an earlier one that it races with.
template <class Words>
const Access* add_access(Words& words, uintptr_t address, size_t num_bytes, Access& access,
                         Random& random) {
  for (const uintptr_t end = address + num_bytes; address < end;) {
    const uintptr_t first = address % 4, last = std::min(end - address + first, uintptr_t{4});
    access.bytes = static_cast<uint8_t>((1 << last) - (1 << first));
    Word* word = words.find(address / 4, access.action);
    if (const Access* earlier = word->add(access, random)) return earlier;
    address += last - first;
  }
  return nullptr;
}

}  // namespace sift::simt
