#include "races.h"

namespace sift::simt {
namespace {

bool is_ordered(const Access& earlier, const Moment& now) {
  const Moment& then = earlier.moment;
  if (earlier.action == Action::kCopy) return false;
  return then.thread == now.thread || then.grid_time < now.grid_time ||
         (then.block == now.block && then.block_time < now.block_time) ||
         (then.thread / 32 == now.thread / 32 && then.warp_time < now.warp_time);
}

bool is_race(const Access& earlier, const Access& later) {
  return (earlier.bytes & later.bytes) != 0 &&
         (earlier.action != Action::kRead || later.action != Action::kRead) &&
         (earlier.action != Action::kAtomic || later.action != Action::kAtomic) &&
         !is_ordered(earlier, later.moment);
}

// Whether all that will race with `earlier` will race with `later` too.
bool is_covered(const Access& earlier, const Access& later) {
  if (earlier.bytes == 0) return true;
  return (earlier.bytes & ~later.bytes) == 0 && is_ordered(earlier, later.moment) &&
         (earlier.action == later.action || later.action == Action::kWrite ||
          later.action == Action::kCopy);
}

}  // namespace

const Access* Word::add(const Access& access, Random& random) {
  Access* place = nullptr;
  for (Access& earlier : accesses_) {
    if (is_race(earlier, access)) return &earlier;
    if (is_covered(earlier, access)) {
      earlier.bytes = 0;
      place = &earlier;
    }
  }
  if (place == nullptr) place = &accesses_[random.below(kAccesses)];
  *place = access;
  return nullptr;
}

void Word::finish_copy(const Moment& now) {
  for (Access& access : accesses_) {
    if (access.action != Action::kCopy || access.moment.thread != now.thread) continue;
    access.action = Action::kWrite;
    access.moment = now;
  }
}

Word* GlobalWords::find(uintptr_t word, Action action) {
  const uintptr_t page = word / kPageWords;
  if (action != Action::kRead) {
    written_.set(page % kHashes);
    may_watch_.set(page % kHashes);
  }
  return &pages_[page][word % kPageWords];
}

}  // namespace sift::simt
