"""What results depend on beside the options: the weights, the machine, the versions."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]
_MODEL_FILES = (
    "config.json",
    "*.safetensors*",
    "pytorch_model*",
    "*tokenizer*",
    "vocab*",
    "merges.txt",
)


def fingerprint(folder: Path) -> str:
    """Digest of the files of a model: configuration, weights, tokenizer; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()[:16]


def describe_model(folder: Path, model: Any) -> dict[str, Any]:
    """Name and size of a model, for the report; the weights need not be loaded."""
    path = folder.resolve()
    text = model.config.get_text_config()
    num_heads = text.num_attention_heads
    return {
        "model": str(path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path),
        "weights": fingerprint(folder),
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": text.num_hidden_layers,
        "query_heads": num_heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or num_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        "context": getattr(text, "max_position_embeddings", None),
    }


def describe_machine() -> dict[str, Any]:
    """Processor, versions, date, and the commit where the package runs from a checkout."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "torch", "transformers")},
        "sift_attention": metadata.version("sift-attention"),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return " ".join(next(names, platform.processor()).split())


def _commit() -> str | None:
    """Of the checkout, with "+" where tracked files differ from it."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "-suno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    command = ("git", "-C", str(_ROOT), *words)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
