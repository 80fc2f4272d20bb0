// Tasks of uneven length on the caller's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "decode/cpu/decode_cpu.h"

namespace sift {

// Runs task(slot, i) for i in [0, count), then finish(slot) for every slot that took part. What one slot
// runs comes one after the other, so a slot may own scratch memory. Which slot runs a task is left to
// chance.
template <typename Task, typename Finish>
void run_tasks(const ParallelFor& parallel_for, int64_t num_slots, int64_t count, const Task& task,
               const Finish& finish) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(num_slots, count), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(slot, i);
      finish(slot);
    }
  });
}

template <typename Task>
void run_tasks(const ParallelFor& parallel_for, int64_t num_slots, int64_t count,
               const Task& task) {
  run_tasks(parallel_for, num_slots, count, task, [](int64_t) {});
}

}  // namespace sift
