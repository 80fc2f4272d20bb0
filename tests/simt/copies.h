// cp.async of one thread: copies under way, in groups. Bytes land at a random legal moment.
#pragma once

#include <vector>

#include "random.h"

namespace sift::simt {

// When copies land: as soon as they start, which shows a buffer overwritten too early; only when
// waited for, which shows a missing wait; or anywhere between.
enum class Landing { kAtOnce, kWhenAwaited, kAnytime };

class Copies {
 public:
  // Bytes from a null `from` are zeros.
  void start(void* to, const void* from, Landing landing, Random& random);
  void close_group() { ++num_groups_; }
  // Copies of all closed groups but the last `num_pending` land, and finish(to) is called for each;
  // others may land.
  template <class Finish>
  void await(int num_pending, Landing landing, Random& random, const Finish& finish) {
    std::erase_if(under_way_, [&](Copy& copy) {
      const bool is_due = copy.group < num_groups_ - num_pending;
      if (is_due || (landing == Landing::kAnytime && random.below(4) == 0)) land(copy);
      if (is_due) finish(copy.to);
      return is_due;
    });
  }
  // Lets time pass.
  void land_some(Landing landing, Random& random);
  // Forgets what nobody waited for.
  void clear();

 private:
  struct Copy {
    void* to;
    const void* from;
    int group;
    bool has_landed;
  };
  static void land(Copy& copy);

  std::vector<Copy> under_way_;
  int num_groups_ = 0;  // closed
};

}  // namespace sift::simt
