// The host side of the device seam finds bugs: small kernels, each right as it stands and wrong with
// one planted bug, under many random schedules.
#include <algorithm>
#include <cstdint>
#include <numeric>
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

enum class Bug {
  kNone,
  kNoWait,
  kWaitTooFew,
  kNoSyncBeforeReading,
  kNoSyncBeforeOverwriting,
  kNoSync,
};

// Under how many of 100 schedules run() is false or throws.
template <class Run>
int num_caught(const Run& run) {
  int caught = 0;
  for (uint32_t seed = 0; seed < 100; ++seed) {
    simt::machine().seed = seed;
    try {
      caught += !run();
    } catch (const std::runtime_error&) {
      ++caught;
    }
  }
  return caught;
}

// ---- Copies ----------------------------------------------------------------------------------------

constexpr int kThreads = 64;
constexpr int kTiles = 6;
constexpr int kWords = 4;  // that a thread copies of a tile

struct Tiles {
  const uint32_t* tiles;  // [kTiles, kThreads, kWords]
  uint32_t* sums;         // [kThreads] over the tiles, of what another warp copied
};

// A pipeline of two stages.
template <Bug kBug>
SIFT_KERNEL(kThreads, 1)
pipeline_kernel(const SIFT_GRID_CONSTANT Tiles p) {
  auto* stages = reinterpret_cast<uint32_t*>(dev::shared_memory());
  const auto word = [](int stage, int i) { return (stage * kThreads + i) * kWords; };
  const auto load = [&](int tile) {
    const bool exists = tile < kTiles;
    const uint32_t* from = p.tiles + word(exists ? tile : 0, thread());
    if (exists) dev::copy_async_16(stages + word(tile % 2, thread()), from, true);
    dev::commit_copies();
  };
  uint32_t sum = 0;
  load(0);
  for (int tile = 0; tile < kTiles; ++tile) {
    load(tile + 1);
    if constexpr (kBug == Bug::kWaitTooFew) {
      dev::wait_copies<2>();
    } else if constexpr (kBug != Bug::kNoWait) {
      dev::wait_copies<1>();
    }
    if constexpr (kBug != Bug::kNoSyncBeforeReading) dev::sync_block();
    sum += stages[word(tile % 2, (thread() + 37) % kThreads)];
    if constexpr (kBug != Bug::kNoSyncBeforeOverwriting) dev::sync_block();
  }
  p.sums[thread()] = sum;
}

template <Bug kBug>
int num_caught_in_pipeline() {
  return num_caught([] {
    std::vector<uint32_t> tiles(kTiles * kThreads * kWords), sums(kThreads);
    std::iota(tiles.begin(), tiles.end(), 1u);
    // cp.async wants addresses that are multiples of 16, which operator new gives.
    dev::launch("pipeline", pipeline_kernel<kBug>, {1, kThreads, 2 * kThreads * kWords * 4},
                nullptr, Tiles{tiles.data(), sums.data()});
    for (int i = 0; i < kThreads; ++i) {
      uint32_t expected = 0;
      for (int tile = 0; tile < kTiles; ++tile) {
        expected += tiles[(tile * kThreads + (i + 37) % kThreads) * kWords];
      }
      if (sums[i] != expected) return false;
    }
    return true;
  });
}

TEST_CASE("a pipeline of copies needs its waits and barriers") {
  const int least = simt::finds_races() ? 100 : 50;
  CHECK(num_caught_in_pipeline<Bug::kNone>() == 0);
  CHECK(num_caught_in_pipeline<Bug::kNoWait>() >= least);
  CHECK(num_caught_in_pipeline<Bug::kWaitTooFew>() >= least);
  CHECK(num_caught_in_pipeline<Bug::kNoSyncBeforeReading>() >= least);
  CHECK(num_caught_in_pipeline<Bug::kNoSyncBeforeOverwriting>() >= least);
}

// ---- Barriers --------------------------------------------------------------------------------------

// Every thread writes a word, waits, and reads that of a thread `kDistance` further.
template <Bug kBug, int kDistance>
SIFT_KERNEL(kThreads, 1)
neighbor_kernel(uint32_t* const sums) {
  auto* words = reinterpret_cast<uint32_t*>(dev::shared_memory());
  const auto sync = [] { kDistance < 32 ? dev::sync_warp() : dev::sync_block(); };
  const int neighbor =
      kDistance < 32 ? warp() * 32 + (lane() + kDistance) % 32 : (thread() + kDistance) % kThreads;
  uint32_t sum = 0;
  for (uint32_t round = 0; round < 3; ++round) {
    words[thread()] = 100 * round + static_cast<uint32_t>(thread());
    if constexpr (kBug != Bug::kNoSyncBeforeReading) sync();
    sum += words[neighbor] - static_cast<uint32_t>(neighbor);
    if constexpr (kBug != Bug::kNoSyncBeforeOverwriting) sync();
  }
  sums[thread()] = sum;
}

template <Bug kBug, int kDistance>
int num_caught_at_neighbors() {
  return num_caught([] {
    std::vector<uint32_t> sums(kThreads);
    dev::launch("neighbor", neighbor_kernel<kBug, kDistance>, {1, kThreads, kThreads * 4}, nullptr,
                sums.data());
    return sums == std::vector<uint32_t>(kThreads, 300);
  });
}

TEST_CASE("threads of a warp or block need barriers around shared memory") {
  CHECK(num_caught_at_neighbors<Bug::kNone, 1>() == 0);
  CHECK(num_caught_at_neighbors<Bug::kNoSyncBeforeReading, 1>() == 100);
  CHECK(num_caught_at_neighbors<Bug::kNoSyncBeforeOverwriting, 1>() == 100);
  CHECK(num_caught_at_neighbors<Bug::kNone, 32>() == 0);
  CHECK(num_caught_at_neighbors<Bug::kNoSyncBeforeReading, 32>() == 100);
  CHECK(num_caught_at_neighbors<Bug::kNoSyncBeforeOverwriting, 32>() == 100);
}

constexpr int kBlocks = 4;

struct Partials {
  uint32_t* partials;  // [kBlocks]
  uint32_t* totals;    // [kBlocks] sum of all partials, as each block sees it
};

template <Bug kBug>
SIFT_KERNEL(kThreads, 1)
total_kernel(const SIFT_GRID_CONSTANT Partials p) {
  if (thread() == 0) p.partials[dev::block()] = static_cast<uint32_t>(dev::block()) + 1;
  if constexpr (kBug != Bug::kNoSync) dev::sync_grid();
  if (thread() != 0) return;
  uint32_t total = 0;
  for (int i = 0; i < dev::num_blocks(); ++i) total += p.partials[i];
  p.totals[dev::block()] = total;
}

template <Bug kBug>
int num_caught_in_total() {
  return num_caught([] {
    std::vector<uint32_t> partials(kBlocks), totals(kBlocks);
    dev::launch_cooperative("total", total_kernel<kBug>, {kBlocks, kThreads, 0}, nullptr,
                            Partials{partials.data(), totals.data()});
    return totals == std::vector<uint32_t>(kBlocks, 10);
  });
}

TEST_CASE("blocks need a barrier around global memory") {
  CHECK(num_caught_in_total<Bug::kNone>() == 0);
  CHECK(num_caught_in_total<Bug::kNoSync>() == 100);
}

// ---- Errors that are named -------------------------------------------------------------------------

enum class Misuse {
  kDifferentCollectives,
  kBlockBarrierInOneWarp,
  kWarpBarrierInHalfAWarp,
  kLaneGone,
  kWarpGone,
  kGridBarrierInPlainLaunch,
  kReadBehind,
  kWriteBefore,
  kUnalignedCopy,
  kMatrixOutside,
  kNoMemory,
};

SIFT_KERNEL(kThreads, 1) misuse_kernel(const Misuse misuse) {
  volatile char* memory = dev::shared_memory();
  switch (misuse) {
    case Misuse::kDifferentCollectives:
      lane() == 5 ? dev::ballot(true) : dev::shuffle(uint32_t{0}, 0);
      break;
    case Misuse::kBlockBarrierInOneWarp:
      if (warp() == 1) dev::sync_block();
      break;
    case Misuse::kWarpBarrierInHalfAWarp:
      if (lane() < 16) dev::sync_warp();
      dev::shuffle(0, 0);
      break;
    case Misuse::kLaneGone:
      if (lane() > 0) dev::sync_warp();
      break;
    case Misuse::kWarpGone:
      if (warp() > 0) dev::sync_block();
      break;
    case Misuse::kGridBarrierInPlainLaunch:
      dev::sync_grid();
      break;
    case Misuse::kReadBehind:
      if (thread() == 0) memory[0] = memory[kThreads];
      break;
    case Misuse::kWriteBefore:
      if (thread() == 0) memory[-1] = 0;
      break;
    case Misuse::kUnalignedCopy:
      dev::copy_async_16(dev::shared_memory() + 4, nullptr, false);
      break;
    case Misuse::kMatrixOutside: {
      uint32_t m[4];
      dev::load_matrix_x4(m, dev::shared_memory() + 16 * lane());
      break;
    }
    case Misuse::kNoMemory: {
      volatile uintptr_t address = 64;
      memory[0] = *reinterpret_cast<const char*>(address);
      break;
    }
  }
}

std::string message_of(Misuse misuse) {
  try {
    dev::launch("misuse", misuse_kernel, {1, kThreads, kThreads}, nullptr, misuse);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST_CASE("misuse ends the launch with a sentence that names it") {
  const auto [misuse, words] = GENERATE(table<Misuse, std::vector<std::string>>({
      {Misuse::kDifferentCollectives, {"ballot (", "shuffle (", "lane 5", "test_simt_bugs.cpp:"}},
      {Misuse::kBlockBarrierInOneWarp, {"sync_block (", "warp", "the kernel's end"}},
      {Misuse::kWarpBarrierInHalfAWarp, {"sync_warp (", "shuffle (", "lane"}},
      {Misuse::kLaneGone, {"sync_warp (", "lane", "the kernel's end"}},
      {Misuse::kWarpGone, {"sync_block (", "warp", "the kernel's end"}},
      {Misuse::kGridBarrierInPlainLaunch, {"sync_grid (", "needs launch_cooperative"}},
      {Misuse::kReadBehind, {"offset 64 of shared memory, which has 64 bytes"}},
      {Misuse::kWriteBefore, {"a write next to the block's shared memory"}},
      {Misuse::kUnalignedCopy, {"copy_async_16 (", "16 aligned bytes", "offset 4"}},
      {Misuse::kMatrixOutside, {"load_matrix_x4 (", "16 aligned bytes", "64 of shared memory"}},
      {Misuse::kNoMemory, {"address 0x40, where there is no memory"}},
  }));
  for (int i = 0; i < 20; ++i) {
    const std::string message = message_of(misuse);
    CAPTURE(message);
    CHECK(message.starts_with("kernel misuse, seed "));
    CHECK(std::all_of(words.begin(), words.end(), [&](const std::string& word) {
      return message.find(word) != std::string::npos;
    }));
  }
}

TEST_CASE("a launch that no device takes is refused") {
  const auto message_of = [](dev::LaunchShape shape, auto launch) -> std::string {
    try {
      launch("misuse", misuse_kernel, shape, nullptr, Misuse::kReadBehind);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "no error";
  };
  const auto plain = dev::launch<Misuse>, cooperative = dev::launch_cooperative<Misuse>;
  CHECK(message_of({0, 32, 0}, plain) == "kernel misuse must have a block, got 0");
  CHECK(message_of({1, 33, 0}, plain) == "kernel misuse must have whole warps of threads, got 33");
  CHECK(message_of({1, 32, 1 << 20}, plain) ==
        "kernel misuse must have at most 101376 bytes of shared memory, got 1048576");
  CHECK(message_of({5, 32, 0}, cooperative) ==
        "kernel misuse must have at most 4 blocks that run together, got 5");
}

}  // namespace
}  // namespace sift
