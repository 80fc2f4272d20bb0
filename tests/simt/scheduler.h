// Chooses which fiber of a launch runs next, and lets them meet.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "context.h"
#include "copies.h"
#include "meeting.h"
#include "memory.h"
#include "races.h"
#include "random.h"
#include "simt.h"

namespace sift::simt {

struct Warp;
struct Block;

constexpr size_t kStackBytes = 128 * 1024;

struct alignas(64) Fiber : Thread {
  Context context;
  Warp* warp = nullptr;
  int lane = 0;
  const char* stack_end = nullptr;
  Copies copies;
};

struct Warp {
  Block* block = nullptr;
  int idx = 0;              // in the block
  Fiber* lanes = nullptr;   // [kWarpSize]
  Fiber* ready[kWarpSize];  // those that may run, without the one that does
  int num_ready = 0;
  int runnable_idx = 0;  // in Scheduler::runnable_, when num_ready > 0
  Meeting meeting{"lane", kWarpSize};
  uint32_t time = 0;  // barriers passed
  // Two sets by turns: the next meeting begins before all lanes took what the last one gave.
  Slot slots[2][kWarpSize];
  int turn = 0;
};

struct Block {
  Block(const Grid& grid, size_t first_stack);

  int idx = 0;  // in the grid
  const size_t first_stack;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Meeting meeting;
  uint32_t time = 0;  // barriers passed
  GuardedMemory shared_memory;
  SharedWords shared_words;
};

class Scheduler {
 public:
  Scheduler(const Grid& grid, const std::function<void()>& body, uint32_t seed);

  // Runs the whole grid; throws std::runtime_error.
  void run();

  static Scheduler* active;  // that runs

  // Called by fibers; `code` is where the kernel goes on.
  Slot& own_slot() const { return fiber_->warp->slots[fiber_->warp->turn][fiber_->lane]; }
  const Slot* meet_warp(const Site& site, void (*finish)(Slot*));
  void sync_warp(const Site& site);
  void sync_block(const Site& site);
  void sync_grid(const Site& site);
  void pause();
  void start_copy(const Site& site, void* to, const void* from, const void* code);
  void close_copy_group() { fiber_->copies.close_group(); }
  void wait_copy_groups(int num_pending);
  void read_shared(const Site& site, const void* address, const void* code);
  uint32_t atomic_add(uint32_t* address, uint32_t x, const void* code);
  // An error when it races with another.
  void access(const void* address, size_t num_bytes, Action action, const void* code);
  [[noreturn]] void fail_access(const void* address);
  [[noreturn]] void fail(const Site& site, const std::string& sentence);
  [[noreturn]] void fail(const std::string& sentence);

 private:
  static void enter_fiber();
  [[noreturn]] void leave_fiber();
  void begin_block(Block& block);
  void make_ready(Warp& warp);
  void pass_barrier(Warp& warp);
  void pass_barrier(Block& block);
  void add_ready(Fiber& fiber);
  Fiber& take_ready();
  void run_another();
  [[noreturn]] void fail_race(const void* address, bool is_shared, const Access& earlier,
                              const Access& later);
  [[noreturn]] void return_to_host();
  void check_shared(const Site& site, const void* address);
  intptr_t shared_offset(const void* address) const;
  Moment now() const;

  const Grid grid_;
  const std::function<void()>& body_;
  const uint32_t seed_;
  Random random_;
  Landing landing_;
  int patience_;  // a warp runs on with probability 1 - 1 / patience_

  std::vector<std::unique_ptr<Block>> blocks_;  // at the same time
  std::vector<int> block_order_;                // of all, the next one last
  Meeting grid_meeting_;
  uint32_t time_ = 0;  // barriers of the grid passed
  GlobalWords global_words_;
  std::vector<Warp*> runnable_;
  Fiber* fiber_ = nullptr;  // that runs
  Warp* warp_ = nullptr;    // of the fiber that ran last
  Context host_;
  Block* finished_block_ = nullptr;
  std::string error_;
};

}  // namespace sift::simt
