#include "meeting.h"

#include <bit>
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

}  // namespace

std::string describe(const Site& site) {
  if (site.line == 0) return site.function;
  const std::string path = site.file;
  const std::string name = path.substr(path.rfind('/') + 1);
  return std::string(site.function) + " (" + name + ":" + std::to_string(site.line) + ")";
}

Meeting::Meeting(const char* member, int size)
    : member_(member), all_(size == 64 ? ~uint64_t{0} : (uint64_t{1} << size) - 1) {}

void Meeting::fail_alone(const Site& site) const {
  fail(site, "waits for " + describe(member_, gone_) + ", at the kernel's end");
}

void Meeting::fail_apart(const Site& site) const {
  fail(site, "is reached while " + describe(member_, waiting_) +
                 (std::has_single_bit(waiting_) ? " waits in " : " wait in ") + describe(site_));
}

}  // namespace sift::simt
