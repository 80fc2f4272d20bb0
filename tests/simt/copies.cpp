#include "copies.h"

#include <cstring>

namespace sift::simt {

constexpr size_t kBytes = 16;

void Copies::land(Copy& copy) {
  if (copy.has_landed) return;
  copy.has_landed = true;
  if (copy.from == nullptr) {
    std::memset(copy.to, 0, kBytes);
  } else {
    std::memcpy(copy.to, copy.from, kBytes);
  }
}

void Copies::start(void* to, const void* from, Landing landing, Random& random) {
  under_way_.push_back({to, from, num_groups_, false});
  if (landing == Landing::kAtOnce || (landing == Landing::kAnytime && random.below(4) == 0)) {
    land(under_way_.back());
  }
}

void Copies::land_some(Landing landing, Random& random) {
  if (landing != Landing::kAnytime || under_way_.empty() || random.below(8) != 0) return;
  land(under_way_[static_cast<size_t>(random.below(static_cast<int>(under_way_.size())))]);
}

void Copies::clear() {
  under_way_.clear();
  num_groups_ = 0;
}

}  // namespace sift::simt
