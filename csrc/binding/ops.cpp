// The operators' schemas. Each backend registers its functions in its own files.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sift_attention, library) {
  library.def(
      "decode(Tensor q, Tensor k, Tensor v, Tensor log_alpha, Tensor beta, float scale, "
      "Tensor? seq_lens=None, Tensor? key_mask=None, Tensor? v_sum=None, int residual=0, "
      "float softcap=0.0, Tensor? sinks=None, Tensor? block_table=None) "
      "-> (Tensor out, Tensor lse, Tensor kept_mass, Tensor num_loaded)");
  library.def(
      "score_quantile(Tensor q, Tensor k, Tensor lengths, float quantile, float scale, "
      "Tensor? key_mask=None, float softcap=0.0, Tensor? sinks=None, Tensor? block_table=None) "
      "-> Tensor");
  library.def(
      "fit_power_law(Tensor lengths, Tensor quantiles, float? beta=None) "
      "-> (Tensor log_alpha, Tensor beta, Tensor ok)");
}

// Programs that link this library take the address of this function, so that linkers keep it.
extern "C" [[gnu::visibility("default")]] void sift_attention_anchor() {}
