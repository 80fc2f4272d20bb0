// Runs kernels on the host. Every CUDA thread is a fiber; fibers run one at a time, in random order,
// and change places only where threads wait for each other. One host thread may launch at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

namespace sift::simt {

// The device that tests pretend to have, and the schedule.
struct Machine {
  int max_resident_blocks = 4;       // at most 64
  int max_shared_bytes = 99 * 1024;  // per block
  int64_t l2_bytes = int64_t{1} << 22;
  uint32_t seed = 0;  // of the next launch, which adds 1
};
Machine& machine();

// Whether the kernels were compiled so that data races are found; see access_hooks.cpp.
bool finds_races();

// Runs body() as every thread of a grid. Throws std::runtime_error where threads of a warp, block or
// grid wait for each other at different places, at accesses outside of their memory and at data
// races. Shared memory begins as NaN.
struct Grid {
  const char* kernel_name;
  int num_blocks;
  int num_threads;
  int shared_bytes;
  bool is_cooperative;
};
void run(const Grid& grid, const std::function<void()>& body);

// ---- For device.h ----------------------------------------------------------------------------------

constexpr int kWarpSize = 32;

struct Thread {
  int thread = 0;
  int num_threads = 0;
  int block = 0;
  int num_blocks = 0;
  char* shared_memory = nullptr;
};
extern const Thread* running;

// A call in a kernel where threads meet.
struct Site {
  const char* function;
  const char* file;
  int line;
};

// What a lane gives to the others of its warp, and gets from them.
class Slot {
 public:
  template <class T>
  void put(const T& x) {
    static_assert(sizeof(T) <= sizeof(bytes_));
    std::memcpy(bytes_, &x, sizeof(T));
  }
  template <class T>
  T get() const {
    T x;
    std::memcpy(&x, bytes_, sizeof(T));
    return x;
  }

 private:
  unsigned char bytes_[40];
};

// Where the running lane puts what it gives; then it meets the others of its warp, gets the slots of
// all 32. The last to arrive calls `finish`, when given, for all.
Slot& own_slot();
const Slot* meet_warp(const Site& site, void (*finish)(Slot* slots) = nullptr);

// Barriers, which order what threads do to memory. The exchange of values does not.
void sync_warp(const Site& site);
void sync_block(const Site& site);
void sync_grid(const Site& site);

uint32_t atomic_add(uint32_t* address, uint32_t x);

// cp.async of 16 bytes, zeros when `from` is null, and its groups. The bytes land at a random moment
// until the wait that demands them.
void start_copy(const Site& site, void* to, const void* from);
void close_copy_group();
void wait_copy_groups(int num_pending);

// A read of 16 bytes that must be aligned and in this block's shared memory.
void read_shared(const Site& site, const void* address);

// Ends the launch with an error that says where the running thread is.
[[noreturn]] void fail(const Site& site, const std::string& sentence);

}  // namespace sift::simt
