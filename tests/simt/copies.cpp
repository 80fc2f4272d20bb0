#include "copies.h"

#include <cstring>

namespace sift::simt {

constexpr size_t kBytes = 16;

void Copies::land(const Copy& copy) {
  if (copy.from == nullptr) {
    std::memset(copy.to, 0, kBytes);
  } else {
    std::memcpy(copy.to, copy.from, kBytes);
  }
}

void Copies::start(void* to, const void* from, Landing landing, Random& random) {
  const Copy copy{to, from, num_groups_};
  if (landing == Landing::kAtOnce || (landing == Landing::kAnytime && random.below(4) == 0)) {
    land(copy);
  } else {
    under_way_.push_back(copy);
  }
}

void Copies::await(int num_pending, Landing landing, Random& random) {
  std::erase_if(under_way_, [&](const Copy& copy) {
    const bool is_due = copy.group < num_groups_ - num_pending;
    const bool lands = is_due || (landing == Landing::kAnytime && random.below(4) == 0);
    if (lands) land(copy);
    return lands;
  });
}

void Copies::land_some(Landing landing, Random& random) {
  if (landing != Landing::kAnytime || under_way_.empty() || random.below(8) != 0) return;
  const auto lucky = under_way_.begin() + random.below(static_cast<int>(under_way_.size()));
  land(*lucky);
  under_way_.erase(lucky);
}

void Copies::clear() {
  under_way_.clear();
  num_groups_ = 0;
}

}  // namespace sift::simt
