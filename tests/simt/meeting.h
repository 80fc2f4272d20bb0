// Where the lanes of a warp, the warps of a block or the blocks of a grid wait for each other.
#pragma once

#include <cstdint>
#include <string>

#include "simt.h"

namespace sift::simt {

// "sync_warp (file:line)"
std::string describe(const Site& site);

class Meeting {
 public:
  // `member` is "lane", "warp" or "block"; there are at most 64.
  Meeting(const char* member, int size);

  // Member i waits at `site`; true when all do, and the next meeting begins. An error unless all
  // come to the same site.
  bool join(int i, const Site& site);
  // Member i reached the end of the kernel; true when all did.
  bool leave(int i, const Site& site);

 private:
  const char* member_;
  uint64_t all_;
  uint64_t waiting_ = 0;
  uint64_t gone_ = 0;
  Site site_ = {};
};

}  // namespace sift::simt
