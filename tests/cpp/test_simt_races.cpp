// Data races of kernels on the host are found under every schedule, and nothing else is called one.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch2.h"
#include "device.h"
#include "launch.h"

namespace sift {
namespace {

using dev::lane;
using dev::thread;
using dev::warp;

struct Memory {
  uint32_t* global;  // [2, 64], zeros
};
using Kernel = void (*)(Memory);

uint32_t* shared() { return reinterpret_cast<uint32_t*>(dev::shared_memory()); }

// How many of 20 schedules end with a data race.
int num_races(Kernel kernel) {
  int races = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    simt::machine().seed = seed;
    std::vector<uint32_t> global(2 * 64);
    try {
      dev::launch_cooperative("races", kernel, {2, 64, 1024}, nullptr, Memory{global.data()});
    } catch (const std::runtime_error& error) {
      CAPTURE(error.what());
      CHECK(std::string(error.what()).find(" races with ") != std::string::npos);
      ++races;
    }
  }
  return races;
}

void check_is_right(Kernel kernel) { CHECK(num_races(kernel) == 0); }
// Where accesses are not watched, only those of the seam's own functions are found.
void check_is_race(Kernel kernel) { CHECK(num_races(kernel) >= (simt::finds_races() ? 20 : 0)); }

TEST_CASE("an exchange within a warp orders no memory, sync_warp does") {
  check_is_race([](Memory) {
    shared()[thread()] = 1;
    dev::shuffle(0, 0);
    shared()[thread() ^ 1] += 1;
  });
  check_is_right([](Memory) {
    shared()[thread()] = 1;
    dev::sync_warp();
    shared()[thread() ^ 1] += 1;
  });
}

TEST_CASE("a barrier orders the memory of those who take part in it") {
  check_is_race([](Memory) {
    shared()[thread()] = 1;
    dev::sync_warp();
    shared()[thread() ^ 32] += 1;
  });
  check_is_right([](Memory) {
    shared()[thread()] = 1;
    dev::sync_block();
    shared()[thread() ^ 32] += 1;
  });
  check_is_race([](Memory p) {
    p.global[dev::block() * 64 + thread()] = 1;
    dev::sync_block();
    p.global[(1 - dev::block()) * 64 + thread()] += 1;
  });
  check_is_right([](Memory p) {
    p.global[dev::block() * 64 + thread()] = 1;
    dev::sync_grid();
    p.global[(1 - dev::block()) * 64 + thread()] += 1;
  });
}

TEST_CASE("only accesses to the same bytes race, and only when one is a write") {
  check_is_race([](Memory) { shared()[0] = 1; });
  check_is_right([](Memory) { reinterpret_cast<uint8_t*>(dev::shared_memory())[thread()] = 1; });
  check_is_race([](Memory) {
    reinterpret_cast<uint8_t*>(dev::shared_memory())[thread()] = 1;
    if (thread() == 40) shared()[2] = 1;
  });
  check_is_right([](Memory p) {
    if (thread() == 0) shared()[0] = p.global[0];
    dev::sync_block();
    shared()[1 + thread()] = shared()[0] + p.global[0];
  });
}

TEST_CASE("atomic operations race with others only") {
  check_is_right([](Memory p) { dev::atomic_add(p.global, 1); });
  check_is_race([](Memory p) {
    dev::atomic_add(p.global, 1);
    shared()[thread()] = p.global[0];
  });
  check_is_right([](Memory p) {
    dev::atomic_add(p.global, 1);
    dev::sync_grid();
    shared()[thread()] = p.global[0];
  });
}

// The sources of the copies are aligned to 16 bytes, since operator new aligns so.
TEST_CASE("bytes under way race with all, also with what started them") {
  const auto copy = [](Memory p) {
    dev::copy_async_16(shared() + 4 * thread(), p.global + thread() / 2 * 4, true);
  };
  static constexpr auto kCopy = copy;
  check_is_race([](Memory p) {
    kCopy(p);
    dev::commit_copies();
    shared()[4 * thread()] += 1;
  });
  check_is_right([](Memory p) {
    kCopy(p);
    dev::commit_copies();
    dev::wait_copies<0>();
    shared()[4 * thread()] += 1;
  });
  check_is_race([](Memory p) {  // a group that nobody closed is not waited for
    kCopy(p);
    dev::wait_copies<0>();
    shared()[4 * thread()] += 1;
  });
  check_is_race([](Memory p) {
    kCopy(p);
    kCopy(p);
  });
  check_is_race([](Memory p) {  // the wait of one is no wait of another
    kCopy(p);
    dev::commit_copies();
    dev::sync_block();
    dev::wait_copies<0>();
    shared()[4 * (thread() ^ 1)] += 1;
  });
  // Read by the other block. When that comes first, the launch before must have told of the write.
  const int races = num_races([](Memory p) {
    if (dev::block() == 0) p.global[thread()] = 1;
    if (dev::block() == 1) kCopy(p);
  });
  CHECK(races >= (simt::finds_races() ? 19 : 0));
}

TEST_CASE("loads of matrices read shared memory") {
  check_is_race([](Memory) {
    shared()[warp() * 128 + lane()] = 1;
    uint32_t m[4];
    dev::load_matrix_x4(m, shared() + warp() * 128 + 4 * lane());
  });
  check_is_right([](Memory) {
    shared()[warp() * 128 + lane()] = 1;
    dev::sync_warp();
    uint32_t m[4];
    dev::load_matrix_x4(m, shared() + warp() * 128 + 4 * lane());
  });
}

}  // namespace
}  // namespace sift
