// What fibers do to memory: copies, checks of addresses, data races; and the errors.
#include <cstdlib>
#include <sstream>

#include "scheduler.h"

extern "C" const char __executable_start;  // from the linker

namespace sift::simt {
namespace {

constexpr size_t kCopyBytes = 16;

const char* name_of(Action action) {
  switch (action) {
    case Action::kRead:
      return "a read";
    case Action::kWrite:
      return "a write";
    case Action::kAtomic:
      return "an atomic operation";
    case Action::kCopy:
      return "a copy under way";
  }
  return "";
}

}  // namespace

void Scheduler::start_copy(const Site& site, void* to, const void* from, const void* code) {
  check_shared(site, to);
  if (reinterpret_cast<uintptr_t>(from) % kCopyBytes != 0) {
    fail(site, "needs a global address that is a multiple of 16");
  }
  if (from != nullptr) access(from, kCopyBytes, Action::kRead, code);
  access(to, kCopyBytes, Action::kCopy, code);
  fiber_->copies.start(to, from, landing_, random_);
}

void Scheduler::wait_copy_groups(int num_pending) {
  SharedWords& words = fiber_->warp->block->shared_words;
  fiber_->copies.await(num_pending, landing_, random_, [&](const void* to) {
    words.finish_copy(static_cast<uintptr_t>(shared_offset(to)), kCopyBytes, now());
  });
}

void Scheduler::read_shared(const Site& site, const void* address, const void* code) {
  check_shared(site, address);
  access(address, kCopyBytes, Action::kRead, code);
}

uint32_t Scheduler::atomic_add(uint32_t* address, uint32_t x, const void* code) {
  pause();
  access(address, sizeof(x), Action::kAtomic, code);
  const uint32_t before = *address;
  *address += x;
  return before;
}

Moment Scheduler::now() const {
  const Warp& warp = *fiber_->warp;
  return {fiber_->block * fiber_->num_threads + fiber_->thread, fiber_->block, time_,
          warp.block->time, warp.time};
}

void Scheduler::access(const void* address, size_t num_bytes, Action action, const void* code) {
  const auto is_in = [&](const void* begin, size_t size) {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin) < size;
  };
  if (is_in(fiber_->stack_end - kStackBytes, kStackBytes)) return;
  const auto shared_bytes = static_cast<size_t>(grid_.shared_bytes);
  const bool is_shared = is_in(fiber_->shared_memory, shared_bytes);
  const auto key = is_shared ? static_cast<uintptr_t>(shared_offset(address))
                             : reinterpret_cast<uintptr_t>(address);
  if (!is_shared) {
    if (action == Action::kRead && !global_words_.may_watch(key)) return;
    if (is_in(fiber_->warp, sizeof(Warp))) return;  // the slots
  } else if (key + num_bytes > shared_bytes) {
    fail_access(address);
  }
  Access access = {now(),
                   static_cast<uint32_t>(static_cast<const char*>(code) - &__executable_start),
                   action, 0};
  const Access* earlier =
      is_shared ? add_access(fiber_->warp->block->shared_words, key, num_bytes, access, random_)
                : add_access(global_words_, key, num_bytes, access, random_);
  if (earlier != nullptr) fail_race(address, is_shared, *earlier, access);
}

void Scheduler::fail_race(const void* address, bool is_shared, const Access& earlier,
                          const Access& later) {
  const int thread = earlier.moment.thread % grid_.num_threads;
  std::ostringstream text;
  text << name_of(later.action) << " at ";
  if (is_shared) {
    text << "offset " << shared_offset(address) << " of shared memory";
  } else {
    text << "address " << address << " of global memory";
  }
  text << " races with " << name_of(earlier.action) << " by block " << earlier.moment.block
       << ", warp " << thread / kWarpSize << ", lane " << thread % kWarpSize
       << " (code at offsets 0x" << std::hex << later.code << " and 0x" << earlier.code
       << " of the program)";
  fail(text.str());
}

intptr_t Scheduler::shared_offset(const void* address) const {
  return reinterpret_cast<intptr_t>(address) - reinterpret_cast<intptr_t>(fiber_->shared_memory);
}

void Scheduler::check_shared(const Site& site, const void* address) {
  const intptr_t offset = shared_offset(address);
  if (offset >= 0 && offset + 16 <= grid_.shared_bytes && offset % 16 == 0) return;
  fail(site, "needs 16 aligned bytes of the block's " + std::to_string(grid_.shared_bytes) +
                 " of shared memory, got offset " + std::to_string(offset));
}

void Scheduler::fail_access(const void* address) {
  std::ostringstream text;
  const intptr_t offset = shared_offset(address);
  if (std::abs(offset) < machine().max_shared_bytes) {
    text << "an access to offset " << offset << " of shared memory, which has "
         << grid_.shared_bytes << " bytes";
  } else {
    text << "an access to address " << address << ", where there is no memory";
  }
  fail(text.str());
}

void Scheduler::fail(const Site& site, const std::string& sentence) {
  fail(describe(site) + " " + sentence);
}

void Scheduler::fail(const std::string& sentence) {
  std::ostringstream text;
  text << "kernel " << grid_.kernel_name << ", seed " << seed_ << ", block " << fiber_->block
       << ", warp " << fiber_->warp->idx << ", lane " << fiber_->lane << ": " << sentence;
  error_ = text.str();
  return_to_host();
}

}  // namespace sift::simt
