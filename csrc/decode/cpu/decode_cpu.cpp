// decode on the CPU: who works on what, and where it lies in the caller's memory.
#include "decode/cpu/decode_cpu.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "decode/cpu/at_level.h"
#include "decode/cpu/decode_group.h"
#include "decode/cpu/dispatch.h"
#include "decode/cpu/rows.h"
#include "decode/cpu/tasks.h"
#include "decode/cpu/workspace.h"

namespace sift {
namespace {

// Each of several threads must have so many products of q and k to take (16 keys for 16 heads of
// 128). Sharing a call was measured to cost 2 us in most runs, but 8 us and more in others.
constexpr int64_t kMinProductsPerThread = 32 * 1024;

// How the work is divided. Either a thread takes a whole group, whose scores then stay in its
// cache, or, with few groups, the threads share the chunks of all groups.
struct Plan {
  int64_t group_size = 0;
  int64_t num_groups = 0;
  int64_t max_chunks = 0;
  int64_t num_slots = 0;
  int64_t groups_per_task = 1;  // of whole groups
  bool is_split = false;
};

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

Plan make_plan(const DecodeParams& p, int num_threads) {
  Plan plan;
  if (p.num_kv_heads == 0) return plan;
  plan.group_size = p.num_q_heads / p.num_kv_heads;
  plan.num_groups = p.batch * p.num_kv_heads;
  int64_t num_keys = 0;
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = sequence_length(p.keys, b, p.capacity);
    longest = std::max(longest, length);
    num_keys += length;
  }
  plan.max_chunks = num_chunks(longest);
  const int64_t num_products = num_keys * p.num_q_heads * p.head_dim;
  plan.num_slots = std::clamp<int64_t>(num_products / kMinProductsPerThread, 1, num_threads);
  // Short groups that follow one another ask for each other's rows, and threads whose results lie
  // far apart don't take cache lines from one another.
  if (longest <= kRowsAhead) plan.groups_per_task = ceil_div(plan.num_groups, plan.num_slots);
  plan.is_split = plan.max_chunks > 1 && plan.num_groups < 4 * plan.num_slots &&
                  plan.num_groups % plan.num_slots != 0;
  return plan;
}

// All that is kept between the passes, in the caller's memory.
struct Memory {
  Memory(const DecodeParams& p, const Plan& plan, void* base) {
    Workspace workspace(base);
    sequences = workspace.take<Sequence>(p.batch);
    chunk_starts = workspace.take<int32_t>(p.batch * plan.max_chunks);
    remaining = workspace.take<std::atomic<int64_t>>(plan.num_groups);
    const int64_t rows = plan.max_chunks * plan.group_size;
    states.resize(plan.is_split ? plan.num_groups : plan.num_slots);
    for (GroupState& state : states) {
      state.scores = workspace.take<float>(rows * kScoreStride);
      state.max = workspace.take<float>(rows);
      state.sum = workspace.take<float>(rows);
      state.mass = workspace.take<float>(rows);
      state.num_loaded = workspace.take<int32_t>(plan.max_chunks);
      state.heads = workspace.take<Head>(plan.group_size);
    }
    scratches.resize(plan.num_slots);
    for (Scratch& scratch : scratches) {
      scratch.queries = workspace.take<float>(plan.group_size * kQueryStride);
      scratch.sums = workspace.take<float>(plan.group_size * kScoreStride);
      scratch.thresholds = workspace.take<float>(plan.group_size);
      scratch.positions = workspace.take<int32_t>(kChunkKeys);
      scratch.selected = workspace.take<int32_t>(kScoreStride);
      scratch.rows = workspace.take<const void*>(kChunkKeys + kRowPadding);
      scratch.parts = workspace.take<const float*>(plan.max_chunks + 1);
      scratch.part_weights = workspace.take<double>(plan.max_chunks + 1);
      for (RowList& list : scratch.lists) {
        list.own_weights = workspace.take<float>(plan.group_size * kScoreStride);
        list.rows = workspace.take<const void*>(kChunkKeys + kRowPadding);
      }
    }
    bytes = workspace.bytes();
  }

  Sequence* sequences;              // [B]
  int32_t* chunk_starts;            // [B][max_chunks]
  std::atomic<int64_t>* remaining;  // [group]: chunks that the present pass has not seen
  std::vector<GroupState> states;   // one per group if split, else one per slot
  std::vector<Scratch> scratches;   // [slot]
  int64_t bytes;
};

void find_sequences(const DecodeParams& p, const Plan& plan, const Memory& memory,
                    const ParallelFor& parallel_for) {
  const bool is_scan = p.keys.key_mask != nullptr || p.keys.block_table != nullptr;
  run_tasks(parallel_for, is_scan ? plan.num_slots : 1, p.batch, [&](int64_t, int64_t b) {
    int32_t* chunk_starts = is_scan ? memory.chunk_starts + b * plan.max_chunks : nullptr;
    memory.sequences[b] = find_attended_keys(p.keys, b, p.capacity, chunk_starts);
  });
}

void decode_whole_groups(const GroupDecoder& decoder, const Plan& plan, Memory& memory,
                         const ParallelFor& parallel_for) {
  const int64_t num_tasks = ceil_div(plan.num_groups, plan.groups_per_task);
  run_tasks(parallel_for, plan.num_slots, num_tasks, [&](int64_t slot, int64_t i) {
    const GroupState& state = memory.states[slot];
    Scratch& scratch = memory.scratches[slot];
    const int64_t first = i * plan.groups_per_task;
    const int64_t end = std::min(first + plan.groups_per_task, plan.num_groups);
    for (int64_t group = first; group < end; ++group) {
      if (group + 1 < end) decoder.expect(group + 1, scratch);
      const int64_t num_chunks = decoder.num_chunks(group);
      for (int64_t c = 0; c < num_chunks; ++c) decoder.score(group, c, state, scratch);
      decoder.merge(group, state);
      for (int64_t c = 0; c < num_chunks; ++c) {
        decoder.select(group, c, state, scratch, scratch.lists[c % 2]);
        if (c > 0) decoder.load(scratch.lists[(c - 1) % 2], state, scratch);
      }
      if (num_chunks > 0) decoder.load(scratch.lists[(num_chunks - 1) % 2], state, scratch);
      decoder.combine(group, state, scratch);
    }
  });
}

void decode_split_groups(const GroupDecoder& decoder, const Plan& plan, Memory& memory,
                         const ParallelFor& parallel_for) {
  for (int64_t group = 0; group < plan.num_groups; ++group) {
    std::construct_at(&memory.remaining[group], decoder.num_chunks(group));
  }
  const std::vector<GroupState>& states = memory.states;
  // Whether this was the last chunk of the group in the present pass.
  const auto is_last = [&](int64_t group) {
    if (memory.remaining[group].fetch_sub(1, std::memory_order_acq_rel) > 1) return false;
    memory.remaining[group].store(decoder.num_chunks(group), std::memory_order_relaxed);
    return true;
  };
  const auto load = [&](Scratch& scratch, int64_t which) {
    const RowList& list = scratch.lists[which];
    decoder.load(list, states[list.group], scratch);
    if (is_last(list.group)) decoder.combine(list.group, states[list.group], scratch);
  };
  const int64_t num_tasks = plan.num_groups * plan.max_chunks;
  run_tasks(parallel_for, plan.num_slots, num_tasks, [&](int64_t slot, int64_t i) {
    const int64_t group = i / plan.max_chunks;
    const int64_t chunk = i % plan.max_chunks;
    if (chunk < decoder.num_chunks(group)) {
      decoder.score(group, chunk, states[group], memory.scratches[slot]);
      if (is_last(group)) decoder.merge(group, states[group]);
    } else if (chunk == 0) {  // no chunks at all
      decoder.merge(group, states[group]);
    }
  });
  run_tasks(
      parallel_for, plan.num_slots, num_tasks,
      [&](int64_t slot, int64_t i) {
        const int64_t group = i / plan.max_chunks;
        const int64_t chunk = i % plan.max_chunks;
        Scratch& scratch = memory.scratches[slot];
        if (chunk < decoder.num_chunks(group)) {
          const int64_t which = scratch.num_selected++ % 2;
          decoder.select(group, chunk, states[group], scratch, scratch.lists[which]);
          if (scratch.num_selected > 1) load(scratch, 1 - which);
        } else if (chunk == 0) {
          decoder.combine(group, states[group], scratch);
        }
      },
      [&](int64_t slot) {
        Scratch& scratch = memory.scratches[slot];
        if (scratch.num_selected > 0) load(scratch, (scratch.num_selected - 1) % 2);
      });
}

}  // namespace

int64_t decode_cpu_workspace_bytes(const DecodeParams& params, int num_threads) {
  return Memory(params, make_plan(params, num_threads), nullptr).bytes;
}

void decode_cpu_at_level(const Level& level, const DecodeParams& params, void* workspace,
                         int num_threads, const ParallelFor& parallel_for) {
  const Plan plan = make_plan(params, num_threads);
  if (plan.num_groups == 0) return;
  Memory memory(params, plan, workspace);
  find_sequences(params, plan, memory, parallel_for);
  const GroupDecoder decoder(params, level, memory.sequences);
  if (plan.is_split) {
    decode_split_groups(decoder, plan, memory, parallel_for);
  } else {
    decode_whole_groups(decoder, plan, memory, parallel_for);
  }
}

void decode_cpu(const DecodeParams& params, void* workspace, int num_threads,
                const ParallelFor& parallel_for) {
  decode_cpu_at_level(active_level(), params, workspace, num_threads, parallel_for);
}

}  // namespace sift
