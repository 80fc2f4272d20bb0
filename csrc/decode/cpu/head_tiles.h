// How the heads of a group are taken together. Included after a simd_*.h.
#pragma once

#include <cstdint>

namespace sift {
namespace {

// Calls visit.operator()<n>(h) for heads [h, h + n): four at a time, then the rest.
template <typename Visit>
inline void for_each_head_tile(int64_t num_heads, const Visit& visit) {
  int64_t h = 0;
  for (; h + 4 <= num_heads; h += 4) visit.template operator()<4>(h);
  switch (num_heads - h) {
    case 3:
      return visit.template operator()<3>(h);
    case 2:
      return visit.template operator()<2>(h);
    case 1:
      return visit.template operator()<1>(h);
  }
}

}  // namespace
}  // namespace sift
