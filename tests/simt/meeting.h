// Where the lanes of a warp, the warps of a block or the blocks of a grid wait for each other.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "simt.h"

namespace sift::simt {

// "sync_warp (file:line)"
std::string describe(const Site& site);

inline bool is_same(const Site& x, const Site& y) {
  return x.line == y.line && (x.function == y.function || !std::strcmp(x.function, y.function));
}

class Meeting {
 public:
  static constexpr int kMostMembers = 64;

  // `member` is "lane", "warp" or "block".
  Meeting(const char* member, int size);

  // Member i waits at `site`; true when all do, and the next meeting begins. An error unless all
  // come to the same site.
  bool join(int i, const Site& site) {
    if (gone_ != 0) fail_alone(site);
    if (waiting_ == 0) {
      site_ = site;
    } else if (!is_same(site, site_)) {
      fail_apart(site);
    }
    waiting_ |= uint64_t{1} << i;
    if (waiting_ != all_) return false;
    waiting_ = 0;
    return true;
  }
  // Member i reached the end of the kernel; true when all did.
  bool leave(int i, const Site& end) {
    if (waiting_ != 0) fail_apart(end);
    gone_ |= uint64_t{1} << i;
    return gone_ == all_;
  }

 private:
  [[noreturn]] void fail_alone(const Site& site) const;
  [[noreturn]] void fail_apart(const Site& site) const;

  const char* member_;
  uint64_t all_;
  uint64_t waiting_ = 0;
  uint64_t gone_ = 0;
  Site site_ = {};
};

}  // namespace sift::simt
