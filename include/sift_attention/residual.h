// What stands in for the probability mass of the value rows that were not loaded.
#pragma once

#include <cstdint>

namespace sift {

// The numbers are part of the operator's schema.
enum class Residual : int32_t {
  kMean = 0,         // dropped mass times the mean value row
  kRenormalize = 1,  // divide by the kept mass
  kNone = 2,         // nothing
};

}  // namespace sift
