// Division of sizes for which nothing may be left over.
#pragma once

namespace sift {

// ceil(x / y) of integers, y > 0, x > -y.
template <class X, class Y>
constexpr auto divide_up(X x, Y y) {
  return (x + y - 1) / y;
}

}  // namespace sift
