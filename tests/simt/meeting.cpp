#include "meeting.h"

#include <bit>
#include <cstring>
#include <sstream>
#include <string>

namespace sift::simt {
namespace {

// "lane 7", "lanes 0-3, 8"
std::string describe(const char* member, uint64_t members) {
  std::ostringstream text;
  text << member << (std::has_single_bit(members) ? " " : "s ");
  for (uint64_t rest = members; rest != 0;) {
    const int first = std::countr_zero(rest);
    const int last = first + std::countr_one(rest >> first) - 1;
    text << (rest == members ? "" : ", ") << first;
    if (last > first) text << "-" << last;
    rest &= last == 63 ? 0 : ~uint64_t{0} << (last + 1);
  }
  return text.str();
}

bool is_same(const Site& x, const Site& y) {
  return x.line == y.line && (x.function == y.function || !std::strcmp(x.function, y.function));
}

}  // namespace

std::string describe(const Site& site) {
  if (site.line == 0) return site.function;
  return std::string(site.function) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

Meeting::Meeting(const char* member, int size)
    : member_(member), all_(size == 64 ? ~uint64_t{0} : (uint64_t{1} << size) - 1) {}

bool Meeting::join(int i, const Site& site) {
  if (gone_ != 0) {
    fail(site, "waits for " + describe(member_, gone_) + ", at the kernel's end");
  }
  if (waiting_ == 0) {
    site_ = site;
  } else if (!is_same(site, site_)) {
    fail(site, "differs from " + describe(site_) + ", where " + describe(member_, waiting_) +
                   (std::has_single_bit(waiting_) ? " waits" : " wait"));
  }
  waiting_ |= uint64_t{1} << i;
  if (waiting_ != all_) return false;
  waiting_ = 0;
  return true;
}

bool Meeting::leave(int i, const Site& site) {
  if (waiting_ != 0) {
    fail(site, "is reached while " + describe(member_, waiting_) +
                   (std::has_single_bit(waiting_) ? " waits" : " wait") + " in " + describe(site_));
  }
  gone_ |= uint64_t{1} << i;
  return gone_ == all_;
}

}  // namespace sift::simt
