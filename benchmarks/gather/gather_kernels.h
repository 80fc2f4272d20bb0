// Kernels that gather scattered 256-byte rows, one for each way to load, and the plain truth.
//
// A row is one key's V of one head (D = 128, 16 bits). Of every `window` rows one is loaded, at a
// random place, in ascending order as in the load step of decode; what was loaded is summed, so that
// nothing can be left out. Where the rows lie is computed, as decode has its list on the chip.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace gather {

constexpr int kRowBytes = 256;
constexpr int kLanesPerRow = kRowBytes / 16;
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStageRows = 4;  // per warp: each lane loads 16 bytes of two of them

// Loads one row of every `window` rows.
struct Gather {
  const uint4* rows = nullptr;  // [num_kept * window, 16]
  int num_kept = 0;
  uint32_t window = 1;
  uint32_t* checksum = nullptr;  // [1] XOR of all words loaded

  __device__ const uint4* row(int position) const {
    const uint32_t hash = (uint32_t(position) ^ uint32_t(position) >> 7) * 2654435761u;
    return rows + (int64_t{position} * window + __umulhi(hash, window)) * kLanesPerRow;
  }
};

// A warp's share: of its block's contiguous part every kWarps-th stage.
struct Share {
  int end = 0, first = 0, num_stages = 0;

  __device__ explicit Share(int num_kept) {
    const int warp = threadIdx.x / 32;
    const int part = (num_kept + gridDim.x - 1) / gridDim.x;
    const int begin = min(int(blockIdx.x) * part, num_kept);
    end = min(begin + part, num_kept);
    first = begin + warp * kStageRows;
    num_stages = max(0, (end - first + kWarps * kStageRows - 1) / (kWarps * kStageRows));
  }
  __device__ int position(int stage, int slot) const {
    return first + stage * kWarps * kStageRows + slot;
  }
};

__device__ uint32_t folded(uint4 words) { return words.x ^ words.y ^ words.z ^ words.w; }

__device__ void add_to_checksum(uint32_t* checksum, uint32_t sum) {
  sum = __reduce_xor_sync(~0u, sum);
  if (threadIdx.x % 32 == 0) atomicXor(checksum, sum);
}

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// cp.async: each lane copies 16 bytes of two rows into shared memory and reads back its own.
template <int kDepth>
__global__ void __launch_bounds__(kThreads) gather_cp_async(const __grid_constant__ Gather gather) {
  constexpr int kStages = kDepth / kStageRows;
  extern __shared__ uint4 buffers[];
  const int lane = threadIdx.x % 32, half = lane / kLanesPerRow;
  uint4* mine = buffers + (threadIdx.x / 32) * kDepth * kLanesPerRow + lane;
  const Share share(gather.num_kept);
  auto issue = [&](int stage) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = share.position(stage, 2 * i + half);
      if (position >= share.end) continue;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       shared_address(mine + (stage % kStages * 2 + i) * 32)),
                   "l"(gather.row(position) + lane % kLanesPerRow)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int stage = 0; stage < kStages; ++stage) issue(stage);
  uint32_t sum = 0;
  for (int stage = 0; stage < share.num_stages; ++stage) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (share.position(stage, 2 * i + half) < share.end) {
        sum ^= folded(mine[(stage % kStages * 2 + i) * 32]);
      }
    }
    issue(stage + kStages);
  }
  add_to_checksum(gather.checksum, sum);
}

// ld.global.nc.v4 into registers: two batches in turn, both in flight.
template <int kDepth>
__global__ void __launch_bounds__(kThreads)
    gather_registers(const __grid_constant__ Gather gather) {
  constexpr int kStages = kDepth / (2 * kStageRows);  // of one batch
  const int lane = threadIdx.x % 32, half = lane / kLanesPerRow;
  const Share share(gather.num_kept);
  uint4 words[2][2 * kStages];
  auto load = [&](uint4(&into)[2 * kStages], int batch) {
#pragma unroll
    for (int i = 0; i < 2 * kStages; ++i) {
      const int position = share.position(batch * kStages + i / 2, i % 2 * 2 + half);
      into[i] = make_uint4(0, 0, 0, 0);
      if (position >= share.end) continue;
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(into[i].x), "=r"(into[i].y), "=r"(into[i].z), "=r"(into[i].w)
                   : "l"(gather.row(position) + lane % kLanesPerRow));
    }
  };
  uint32_t sum = 0;
  load(words[0], 0);
  load(words[1], 1);
  for (int stage = 0; stage < share.num_stages; stage += 2 * kStages) {
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
#pragma unroll
      for (int i = 0; i < 2 * kStages; ++i) sum ^= folded(words[turn][i]);
      load(words[turn], stage / kStages + 2 + turn);
    }
  }
  add_to_checksum(gather.checksum, sum);
}

// cp.async.bulk: four lanes fetch a whole row each; a barrier per stage counts the bytes.
template <int kDepth>
__global__ void __launch_bounds__(kThreads) gather_bulk(const __grid_constant__ Gather gather) {
#if __CUDA_ARCH__ >= 900
  constexpr int kStages = kDepth / kStageRows;
  extern __shared__ __align__(128) uint4 buffers[];
  __shared__ uint64_t barriers[kWarps][kStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = lane / kLanesPerRow;
  uint4* mine = buffers + warp * kDepth * kLanesPerRow;
  const Share share(gather.num_kept);
  if (lane < kStages) {
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n"
        "fence.proxy.async.shared::cta;" ::"r"(shared_address(&barriers[warp][lane]))
        : "memory");
  }
  __syncwarp();
  auto issue = [&](int stage) {
    const uint32_t barrier = shared_address(&barriers[warp][stage % kStages]);
    const int num_rows = min(kStageRows, share.end - share.position(stage, 0));
    if (lane == 0 && num_rows > 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(num_rows * kRowBytes)
                   : "memory");
    }
    __syncwarp();
    if (lane < num_rows) {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
          "[%0], [%1], %2, [%3];" ::"r"(
              shared_address(mine + (stage % kStages * kStageRows + lane) * kLanesPerRow)),
          "l"(gather.row(share.position(stage, lane))), "r"(kRowBytes), "r"(barrier)
          : "memory");
    }
  };
  for (int stage = 0; stage < kStages; ++stage) issue(stage);
  uint32_t sum = 0;
  for (int stage = 0; stage < share.num_stages; ++stage) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
            shared_address(&barriers[warp][stage % kStages])),
        "r"(stage / kStages % 2)
        : "memory");
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (share.position(stage, 2 * i + half) < share.end) {
        sum ^= folded(mine[(stage % kStages * 2 + i) * 32 + lane]);
      }
    }
    __syncwarp();  // all lanes have read before the slot is asked for again
    issue(stage + kStages);
  }
  add_to_checksum(gather.checksum, sum);
#endif
}

// The plain truth that every way to load is compared with: a warp for each row.
__global__ void gather_plainly(const Gather gather) {
  for (int position = blockIdx.x; position < gather.num_kept; position += gridDim.x) {
    const auto* words = reinterpret_cast<const uint32_t*>(gather.row(position));
    add_to_checksum(gather.checksum, words[threadIdx.x] ^ words[threadIdx.x + 32]);
  }
}

__global__ void fill(uint32_t* words, size_t num_words) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_words; i += stride) {
    const uint32_t hash = uint32_t(i) * 2654435761u ^ uint32_t(i >> 32);
    words[i] = (hash ^ hash >> 15) * 2246822519u;
  }
}

// Reads a buffer. The L2 then holds nothing of what it held, and nothing to be written back.
__global__ void read_all(const uint4* words, size_t num_words, uint32_t* checksum) {
  uint32_t sum = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_words; i += stride) {
    sum ^= folded(words[i]);
  }
  add_to_checksum(checksum, sum);
}

}  // namespace gather
