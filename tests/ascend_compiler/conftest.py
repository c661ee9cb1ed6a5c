"""These tests run in an environment of their own, which has triton-ascend: `make test-ascend-compiler`."""

import importlib.metadata

try:
    importlib.metadata.version("triton-ascend")
except importlib.metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
