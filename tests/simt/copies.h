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
  // Copies of all closed groups but the last `num_pending` land; others may.
  void await(int num_pending, Landing landing, Random& random);
  // Lets time pass.
  void land_some(Landing landing, Random& random);
  // Forgets what nobody waited for.
  void clear();

 private:
  struct Copy {
    void* to;
    const void* from;
    int group;
  };
  static void land(const Copy& copy);

  std::vector<Copy> under_way_;
  int num_groups_ = 0;  // closed
};

}  // namespace sift::simt
