"""How models are read: from disk alone, no code that lies beside them, no pickles."""

from typing import Any

# For from_pretrained of configurations and tokenizers, and of weights.
LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
LOCAL_WEIGHTS: dict[str, Any] = {**LOCAL_ONLY, "use_safetensors": True}
