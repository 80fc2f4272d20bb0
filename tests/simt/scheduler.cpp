#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <sstream>
#include <stdexcept>

// Present where AddressSanitizer is.
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));

namespace sift::simt {
namespace {

constexpr size_t kStackColors = 64 * 1024;
constexpr Site kEnd = {"the kernel's end", "", 0};

// The end of the i-th stack. Stacks outlive launches, since fresh pages cost more than small kernels
// do, and end at different places of their pages: else all would want the same lines of the caches.
char* stack_end(size_t i) {
  static std::vector<std::unique_ptr<GuardedMemory>> stacks;
  while (stacks.size() <= i) stacks.push_back(std::make_unique<GuardedMemory>(kStackBytes));
  char* end = stacks[i]->end();
  // A launch that failed left calls that never return.
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(end - kStackBytes, kStackBytes);
  return end - i * 13 * 64 % kStackColors;
}

}  // namespace

Scheduler* Scheduler::active = nullptr;
const Thread* running = nullptr;

Block::Block(const Grid& grid, size_t first_stack)
    : first_stack(first_stack),
      fibers(static_cast<size_t>(grid.num_threads)),
      warps(static_cast<size_t>(grid.num_threads / kWarpSize)),
      meeting("warp", grid.num_threads / kWarpSize),
      shared_memory(static_cast<size_t>(grid.shared_bytes)),
      shared_words(grid.shared_bytes) {}

Scheduler::Scheduler(const Grid& grid, const std::function<void()>& body, uint32_t seed)
    : grid_(grid),
      body_(body),
      seed_(seed),
      random_(seed),
      landing_(static_cast<Landing>(random_.below(3))),
      patience_(1 << 4 * random_.below(5)),
      block_order_(static_cast<size_t>(grid.num_blocks)),
      grid_meeting_("block", grid.is_cooperative ? grid.num_blocks : 1) {
  std::iota(block_order_.begin(), block_order_.end(), 0);
  for (int i = grid.num_blocks; i > 1; --i) {
    std::swap(block_order_[static_cast<size_t>(i - 1)],
              block_order_[static_cast<size_t>(random_.below(i))]);
  }
  const int most = std::min(grid.num_blocks, machine().max_resident_blocks);
  const int num_resident = grid.is_cooperative ? grid.num_blocks : 1 + random_.below(most);
  for (int i = 0; i < num_resident; ++i) {
    blocks_.push_back(std::make_unique<Block>(
        grid, static_cast<size_t>(i) * static_cast<size_t>(grid.num_threads)));
  }
}

void Scheduler::run() {
  for (const auto& block : blocks_) begin_block(*block);
  for (size_t num_running = blocks_.size(); num_running > 0;) {
    Fiber& fiber = take_ready();
    running = fiber_ = &fiber;
    switch_context(host_, fiber.context);
    if (!error_.empty()) throw std::runtime_error(error_);
    if (block_order_.empty()) {
      --num_running;
    } else {
      begin_block(*finished_block_);
    }
  }
}

void Scheduler::begin_block(Block& block) {
  block.idx = block_order_.back();
  block_order_.pop_back();
  block.meeting = Meeting("warp", grid_.num_threads / kWarpSize);
  block.shared_words.clear();
  char* shared_memory = block.shared_memory.poisoned(static_cast<size_t>(grid_.shared_bytes));
  for (size_t i = 0; i < block.fibers.size(); ++i) {
    const auto thread = static_cast<int>(i);
    Fiber& fiber = block.fibers[i];
    static_cast<Thread&>(fiber) = {thread, grid_.num_threads, block.idx, grid_.num_blocks,
                                   shared_memory};
    fiber.warp = &block.warps[i / kWarpSize];
    fiber.lane = thread % kWarpSize;
    fiber.copies.clear();
    char* end = stack_end(block.first_stack + i);
    fiber.stack_end = end;
    prepare_context(fiber.context, end, kStackBytes - kStackColors, enter_fiber);
  }
  for (size_t i = 0; i < block.warps.size(); ++i) {
    Warp& warp = block.warps[i];
    warp.block = &block;
    warp.idx = static_cast<int>(i);
    warp.lanes = &block.fibers[i * kWarpSize];
    warp.meeting = Meeting("lane", kWarpSize);
    make_ready(warp);
  }
}

void Scheduler::add_ready(Fiber& fiber) {
  Warp& warp = *fiber.warp;
  if (warp.num_ready == 0) {
    warp.runnable_idx = static_cast<int>(runnable_.size());
    runnable_.push_back(&warp);
  }
  warp.ready[warp.num_ready++] = &fiber;
}

void Scheduler::make_ready(Warp& warp) {
  for (int i = 0; i < kWarpSize; ++i) add_ready(warp.lanes[i]);
}

void Scheduler::pass_barrier(Warp& warp) {
  ++warp.time;
  make_ready(warp);
}

void Scheduler::pass_barrier(Block& block) {
  ++block.time;
  for (Warp& warp : block.warps) pass_barrier(warp);
}

// Meetings fail before all could wait in vain, so there is one.
Fiber& Scheduler::take_ready() {
  if (warp_ == nullptr || warp_->num_ready == 0 || random_.below(patience_) == 0) {
    warp_ = runnable_[static_cast<size_t>(random_.below(static_cast<int>(runnable_.size())))];
  }
  Warp& warp = *warp_;
  const int i = random_.below(warp.num_ready);
  Fiber& fiber = *warp.ready[i];
  warp.ready[i] = warp.ready[--warp.num_ready];
  if (warp.num_ready == 0) {
    runnable_.back()->runnable_idx = warp.runnable_idx;
    runnable_[static_cast<size_t>(warp.runnable_idx)] = runnable_.back();
    runnable_.pop_back();
  }
  return fiber;
}

void Scheduler::run_another() {
  Fiber& self = *fiber_;
  Fiber& next = take_ready();
  if (&next == &self) return;
  running = fiber_ = &next;
  switch_context(self.context, next.context);
}

void Scheduler::pause() {
  if (random_.below(2) == 0) return;
  add_ready(*fiber_);
  run_another();
}

const Slot* Scheduler::meet_warp(const Site& site, void (*finish)(Slot*)) {
  Fiber& self = *fiber_;
  Warp& warp = *self.warp;
  Slot* slots = warp.slots[warp.turn];
  self.copies.land_some(landing_, random_);
  if (warp.meeting.join(self.lane, site)) {
    if (finish != nullptr) finish(slots);
    warp.turn ^= 1;
    make_ready(warp);
  }
  run_another();
  return slots;
}

void Scheduler::sync_warp(const Site& site) {
  Fiber& self = *fiber_;
  self.copies.land_some(landing_, random_);
  if (self.warp->meeting.join(self.lane, site)) pass_barrier(*self.warp);
  run_another();
}

void Scheduler::sync_block(const Site& site) {
  Fiber& self = *fiber_;
  Block& block = *self.warp->block;
  self.copies.land_some(landing_, random_);
  if (self.warp->meeting.join(self.lane, site) && block.meeting.join(self.warp->idx, site)) {
    pass_barrier(block);
  }
  run_another();
}

void Scheduler::sync_grid(const Site& site) {
  if (!grid_.is_cooperative) fail(site, "needs launch_cooperative");
  Fiber& self = *fiber_;
  Block& block = *self.warp->block;
  self.copies.land_some(landing_, random_);
  if (self.warp->meeting.join(self.lane, site) && block.meeting.join(self.warp->idx, site) &&
      grid_meeting_.join(block.idx, site)) {
    ++time_;
    for (const auto& other : blocks_) pass_barrier(*other);
  }
  run_another();
}

void Scheduler::enter_fiber() {
  active->body_();
  active->leave_fiber();
}

void Scheduler::leave_fiber() {
  Fiber& self = *fiber_;
  Block& block = *self.warp->block;
  if (self.warp->meeting.leave(self.lane, kEnd) && block.meeting.leave(self.warp->idx, kEnd)) {
    if (!block.shared_memory.is_surrounded_by_poison()) {
      fail(kEnd, "is reached after a write next to the block's shared memory");
    }
    if (grid_.is_cooperative) grid_meeting_.leave(block.idx, kEnd);
    finished_block_ = &block;
    return_to_host();
  }
  run_another();
  __builtin_unreachable();
}

void Scheduler::return_to_host() {
  running = nullptr;
  switch_context(fiber_->context, host_);
  __builtin_unreachable();
}

}  // namespace sift::simt
