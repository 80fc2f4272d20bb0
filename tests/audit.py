"""What Python sources must not do with what they read: run it, unpickle it, fetch more of it.

`python tests/audit.py FILE...` says where they do; tests run it on the package.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# By the first part of their names.
MODULES = {
    "code execution": {"code", "codeop", "ctypes", "imp", "pty", "runpy", "subprocess"},
    "unpickling": {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"},
    "networks": {
        *("aiohttp", "asyncio", "ftplib", "http", "httpx", "huggingface_hub", "imaplib"),
        *("requests", "smtplib", "socket", "socketserver", "ssl", "urllib", "urllib3", "xmlrpc"),
    },
}
CALLS = {"__import__", "compile", "eval", "exec"}
# As they end; `model.eval()` and `torch.compile()` are something else.
METHODS = {
    *("os.popen", "os.system", "torch.hub.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "yaml.load", "yaml.unsafe_load"),
}
LOADERS = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
}


def complaints(source: str, name: str) -> list[str]:
    """One sentence for everything in a source file that could run or fetch something."""
    return [f"{name}:{line}: {what}" for line, what in _found(ast.parse(source))]


def _found(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [] if node.level else [node.module or ""]
            for module in modules:
                for kind, names in MODULES.items():
                    if module.partition(".")[0] in names:
                        yield node.lineno, f"{kind}: imports {module}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _calls(node))


def _calls(node: ast.Call) -> Iterator[str]:
    function = ast.unparse(node.func)
    arguments = [ast.unparse(keyword) for keyword in node.keywords]
    if function in CALLS or function in METHODS:
        yield f"code execution: calls {function}"
    if function in LOADERS and LOADERS[function] not in arguments:
        yield f"unpickling: calls {function} without {LOADERS[function]}"
    is_local = {"local_files_only=True", "**LOCAL_ONLY", "**LOCAL_WEIGHTS"} & set(arguments)
    if function.endswith(".from_pretrained") and not is_local:
        yield f"networks: calls {function} without local_files_only=True"
    for keyword in node.keywords:
        value = ast.unparse(keyword.value)
        if keyword.arg == "trust_remote_code" and value != "False":
            yield f"code execution: sets trust_remote_code={value}"
        if keyword.arg == "shell" and value != "False":
            yield f"code execution: sets shell={value}"


if __name__ == "__main__":
    sys.exit(
        "\n".join(
            line for name in sys.argv[1:] for line in complaints(Path(name).read_text(), name)
        )
        or None
    )
