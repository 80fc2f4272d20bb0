// The keys and values of one attention layer, and the running sum of V that the mean residual needs.
#pragma once

#include <ATen/ATen.h>
#include <sift_attention/config.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sift {
namespace detail {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw std::invalid_argument((std::string() + ... + parts));
}

inline std::string shape_of(const at::Tensor& tensor) { return repr(tensor.sizes().vec()); }

inline std::string dtype_name(const at::Tensor& tensor) {
  return std::string(c10::getDtypeNames(tensor.scalar_type()).first);
}

// int64 [any number] from that or from bool [B].
inline at::Tensor row_indices(const at::Tensor& rows, at::Device device) {
  return (rows.scalar_type() == at::kBool ? rows.nonzero().squeeze(1) : rows).to(device);
}

// As at::empty; asks for huge pages, where decoding streams faster: systems that grant them give
// them only to memory that asks before it is first touched.
inline at::Tensor empty_buffer(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const c10::InferenceMode writable_in_any_mode(false);
  at::Tensor buffer = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(buffer.data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + buffer.nbytes()) / kPage * kPage;
  if (buffer.is_cpu() && first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish; may fail
  }
#endif
  return buffer;
}

}  // namespace detail

// K and V of one layer for a batch of sequences of one length (left padding: see Attention). The
// buffers grow by half, so appending a token copies that token only. Moves, but does not copy:
// copies would write to the same buffers.
class KVCache {
 public:
  KVCache() = default;
  KVCache(KVCache&&) = default;
  KVCache& operator=(KVCache&&) = default;

  // Appends R rows, k and v [B, HK, R, D], and returns all N as k() and v() do. The first rows
  // choose B, HK, D, dtype and device. Throws std::invalid_argument for rows that do not fit.
  std::pair<at::Tensor, at::Tensor> append(const at::Tensor& k, const at::Tensor& v) {
    check_rows(k, v);
    const int64_t num_keys = num_keys_ + k.size(2);
    if (!buffers_fit(k) || k_buffer_.size(2) < num_keys) {
      const int64_t capacity = (3 * num_keys + 511) / 512 * 256;
      k_buffer_ = grown(k_buffer_, k, capacity);
      v_buffer_ = grown(v_buffer_, v, capacity);
    }
    k_buffer_.narrow(2, num_keys_, k.size(2)).copy_(k);
    v_buffer_.narrow(2, num_keys_, k.size(2)).copy_(v);
    num_keys_ = num_keys;
    return {this->k(), this->v()};
  }

  // Views [B, HK, N, D] with a last stride of 1, valid until the cache changes. Undefined before
  // the first append.
  at::Tensor k() const { return held(k_buffer_); }
  at::Tensor v() const { return held(v_buffer_); }

  // N, the keys of each sequence.
  int64_t num_keys() const { return num_keys_; }

  // The sum of the value rows, float32 [B, HK, D]; of those that key_mask (bool [B, N]) attends
  // where it is given. Computed by the first call after a change: a single row that was appended
  // is added, anything else is summed anew. A mask has to keep what it said of earlier keys, see
  // num_summed(). Rows are added in float64, so the sum is exact to half a unit in the last place of
  // float32 however many they are.
  const at::Tensor& v_sum(const std::optional<at::Tensor>& key_mask = std::nullopt) {
    if (num_keys_ == summed_end_ + 1 && is_masked() == key_mask.has_value()) {
      at::Tensor newest = v_buffer_.select(2, num_keys_ - 1);
      if (key_mask) {
        const at::Tensor attended = key_mask->select(1, num_keys_ - 1).unsqueeze(1);
        newest = newest.masked_fill(attended.logical_not().unsqueeze(2), 0.0);
        num_summed_.add_(attended);
      }
      rows_sum_.add_(newest);
    } else if (num_keys_ != summed_end_ && v_buffer_.defined()) {
      const c10::InferenceMode writable_in_any_mode(false);
      at::Tensor attended = v();
      num_summed_.reset();
      if (key_mask) {
        attended = attended.masked_fill(key_mask->logical_not().unsqueeze(1).unsqueeze(3), 0.0);
        num_summed_ = key_mask->sum(-1, true);
      }
      rows_sum_ = attended.sum(2, false, at::kDouble);
    }
    if (num_keys_ != summed_end_ && rows_sum_.defined()) v_sum_ = rows_sum_.to(at::kFloat);
    summed_end_ = num_keys_;
    return v_sum_;
  }

  // How many keys the last v_sum covers, int64 [B, 1]. Where a mask attends another number of keys,
  // it has changed its mind and the sum can't be used.
  at::Tensor num_summed() const {
    if (is_masked()) return num_summed_;
    return at::full({k_buffer_.size(0), 1}, num_keys_, k_buffer_.options().dtype(at::kLong));
  }

  // Drops the newest num_keys keys (not: crops to that length). Throws std::invalid_argument
  // unless that many are held.
  void crop(int64_t num_keys) {
    if (num_keys < 0 || num_keys > num_keys_) {
      detail::refuse("KVCache: num_keys must be in [0, ", std::to_string(num_keys_), "], got ",
                     std::to_string(num_keys));
    }
    if (num_keys == 0) return;
    num_keys_ -= num_keys;
    summed_end_ = kNothingSummed;
    if (is_masked()) num_summed_.sub_(num_keys).clamp_min_(0);
  }

  // Row b becomes row rows[b]: rows int64 [B], a step of beam search.
  void reorder(const at::Tensor& rows) { select(rows); }

  // Keeps these rows, in this order: int64 [any number], or bool [B].
  void select(const at::Tensor& rows) {
    if (!k_buffer_.defined()) return;
    const c10::InferenceMode writable_in_any_mode(false);
    const at::Tensor taken = detail::row_indices(rows, k_buffer_.device());
    k_buffer_ = selected(k_buffer_, taken);
    v_buffer_ = selected(v_buffer_, taken);
    for (at::Tensor* sum : {&rows_sum_, &v_sum_}) {
      if (sum->defined()) *sum = sum->index_select(0, taken);
    }
    if (is_masked()) num_summed_ = num_summed_.index_select(0, taken);
  }

  // Repeats every row: 0, 0, 1, 1, ...
  void repeat(int64_t repeats) {
    if (!k_buffer_.defined()) return;
    select(at::arange(k_buffer_.size(0), at::kLong).repeat_interleave(repeats));
  }

  // Returns to an empty cache and keeps its memory.
  void reset() {
    num_keys_ = 0;
    summed_end_ = kNothingSummed;
    num_summed_.reset();
  }

 private:
  static constexpr int64_t kNothingSummed = -2;  // not even the end before the first key

  bool is_masked() const { return num_summed_.defined(); }

  at::Tensor held(const at::Tensor& buffer) const {
    return buffer.defined() ? buffer.narrow(2, 0, num_keys_) : buffer;
  }

  // Whether the buffers hold rows like these, whatever the capacity.
  bool buffers_fit(const at::Tensor& rows) const {
    return k_buffer_.defined() && k_buffer_.size(0) == rows.size(0) &&
           k_buffer_.size(1) == rows.size(1) && k_buffer_.size(3) == rows.size(3) &&
           k_buffer_.scalar_type() == rows.scalar_type() && k_buffer_.device() == rows.device();
  }

  void check_rows(const at::Tensor& k, const at::Tensor& v) const {
    if (k.dim() != 4) {
      detail::refuse("KVCache: k must have shape [B, HK, R, D], got ", detail::shape_of(k));
    }
    if (v.sizes() != k.sizes()) {
      detail::refuse("KVCache: v must have the shape of k = ", detail::shape_of(k), ", got ",
                     detail::shape_of(v));
    }
    if (v.scalar_type() != k.scalar_type()) {
      detail::refuse("KVCache: v must have dtype ", detail::dtype_name(k), ", got ",
                     detail::dtype_name(v));
    }
    if (v.device() != k.device()) {
      detail::refuse("KVCache: v must be on the device of k = ", k.device().str(), ", got ",
                     v.device().str());
    }
    if (num_keys_ > 0 && !buffers_fit(k)) {
      detail::refuse("KVCache: k must fit the keys held, ", detail::dtype_name(k_buffer_), " ",
                     detail::shape_of(this->k()), " on ", k_buffer_.device().str(), ", got ",
                     detail::dtype_name(k), " ", detail::shape_of(k), " on ", k.device().str());
    }
  }

  // A buffer for rows like these, with what `buffer` holds.
  at::Tensor grown(const at::Tensor& buffer, const at::Tensor& rows, int64_t capacity) const {
    at::Tensor larger = detail::empty_buffer({rows.size(0), rows.size(1), capacity, rows.size(3)},
                                             rows.options().requires_grad(false));
    if (num_keys_ > 0) larger.narrow(2, 0, num_keys_).copy_(held(buffer));
    return larger;
  }

  at::Tensor selected(const at::Tensor& buffer, const at::Tensor& rows) const {
    at::Tensor taken = detail::empty_buffer(
        {rows.size(0), buffer.size(1), buffer.size(2), buffer.size(3)}, buffer.options());
    at::Tensor held_rows = held(taken);
    at::index_select_out(held_rows, held(buffer), 0, rows);
    return taken;
  }

  at::Tensor k_buffer_;  // [B, HK, capacity, D]
  at::Tensor v_buffer_;
  int64_t num_keys_ = 0;
  at::Tensor rows_sum_;                  // float64 [B, HK, D]
  at::Tensor v_sum_;                     // the same in float32
  at::Tensor num_summed_;                // int64 [B, 1]; undefined: all keys, no mask
  int64_t summed_end_ = kNothingSummed;  // keys held when v_sum_ was brought up to date
};

}  // namespace sift
