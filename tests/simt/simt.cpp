#include "simt.h"

#include <algorithm>
#include <stdexcept>

#include "meeting.h"
#include "memory.h"
#include "scheduler.h"

namespace sift::simt {
namespace {

constexpr int kMostThreads = 1024;

void check(const Grid& grid) {
  const auto require = [&](bool holds, const std::string& sentence, int value) {
    if (holds) return;
    throw std::runtime_error("kernel " + std::string(grid.kernel_name) + " must have " + sentence +
                             ", got " + std::to_string(value));
  };
  const Machine& m = machine();
  require(Scheduler::active == nullptr, "no other launch under way", 1);
  require(grid.num_blocks > 0, "a block", grid.num_blocks);
  require(grid.num_threads > 0 && grid.num_threads <= kMostThreads, "1 to 1024 threads per block",
          grid.num_threads);
  require(grid.num_threads % kWarpSize == 0, "whole warps of threads", grid.num_threads);
  require(grid.shared_bytes >= 0 && grid.shared_bytes <= m.max_shared_bytes,
          "at most " + std::to_string(m.max_shared_bytes) + " bytes of shared memory",
          grid.shared_bytes);
  const int most_blocks = std::min(m.max_resident_blocks, Meeting::kMostMembers);
  require(!grid.is_cooperative || grid.num_blocks <= most_blocks,
          "at most " + std::to_string(most_blocks) + " blocks that run together", grid.num_blocks);
}

void on_fault(const void* address) {
  if (running != nullptr) Scheduler::active->fail_access(address);
}

// Ends the launch on every way out.
struct ActiveScheduler {
  explicit ActiveScheduler(Scheduler& scheduler) { Scheduler::active = &scheduler; }
  ~ActiveScheduler() { Scheduler::active = nullptr; }
};

}  // namespace

Machine& machine() {
  static Machine machine;
  return machine;
}

void run(const Grid& grid, const std::function<void()>& body) {
  check(grid);
  Scheduler scheduler(grid, body, machine().seed++);
  const ActiveScheduler active(scheduler);
  const FaultHandler fault_handler(on_fault);
  scheduler.run();
}

Slot& own_slot() { return Scheduler::active->own_slot(); }
const Slot* meet_warp(const Site& site, void (*finish)(Slot*)) {
  return Scheduler::active->meet_warp(site, finish);
}
void sync_warp(const Site& site) { Scheduler::active->sync_warp(site); }
void sync_block(const Site& site) { Scheduler::active->sync_block(site); }
void sync_grid(const Site& site) { Scheduler::active->sync_grid(site); }
void start_copy(const Site& site, void* to, const void* from) {
  Scheduler::active->start_copy(site, to, from, __builtin_return_address(0));
}
void close_copy_group() { Scheduler::active->close_copy_group(); }
void wait_copy_groups(int num_pending) { Scheduler::active->wait_copy_groups(num_pending); }
void read_shared(const Site& site, const void* address) {
  Scheduler::active->read_shared(site, address, __builtin_return_address(0));
}
uint32_t atomic_add(uint32_t* address, uint32_t x) {
  return Scheduler::active->atomic_add(address, x, __builtin_return_address(0));
}
void fail(const Site& site, const std::string& sentence) {
  Scheduler::active->fail(site, sentence);
}

}  // namespace sift::simt
