"""Runs the tests under the code paths of other machines, as far as this CPU supports them: `make test-machines`.

torch takes its kernels from ATen, oneDNN and MKL. Each of them selects kernels by the CPU's features, so that other
machines round differently. Here each is told to ignore some features (but never to compute fp32 in bf16, which gives
other results). ATen without AVX512 is combined with oneDNN without it, as on every real machine, because torch's bf16
attention packs for the features that oneDNN reports, and fails if ATen has no kernel for them (tests/conftest.py does
the same). A path whose probe gives the same bits as an earlier path is skipped. Other arguments are passed to pytest:

    scripts/test_machines.py --only "MKL AVX2" tests/models -x
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name -> (variables, a flag of /proc/cpuinfo that the CPU needs for it)
PATHS = {
    "as it is": ({}, ""),
    "ATen without vectors": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}, ""),
    "ATen AVX2": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
    "ATen AVX512": ({"ATEN_CPU_CAPABILITY": "avx512"}, "avx512f"),
    "oneDNN SSE4.1": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, "sse4_1"),
    "oneDNN AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
    "oneDNN AVX512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512f"),
    "oneDNN AVX512 BF16": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "avx512_bf16"),
    "MKL compatible": ({"MKL_CBWR": "COMPATIBLE"}, ""),
    "MKL reproducible AVX2": ({"MKL_CBWR": "AVX2"}, "avx2"),
    "MKL reproducible AVX512": ({"MKL_CBWR": "AVX512"}, "avx512f"),
    "MKL SSE4.2": ({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, "sse4_2"),
    "MKL AVX2": ({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, "avx2"),
    "two threads": ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "PPE_TEST_THREADS": "2"}, ""),
    "an old machine": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}, ""),
}
QUICK = ("MKL AVX2", "an old machine", "two threads")  # for .ci/run, where `make test` covers "as it is"
QUICK_TESTS = (
    *("tests/backends/test_dpc_knn.py", "tests/backends/test_cpu_dpc_knn.py", "tests/backends/test_group_mean.py"),
    *("tests/backends/test_attention.py", "tests/backends/test_parity.py"),
    "tests/parity/test_bundle.py::test_the_recorded_bundle_holds_here",
    *("tests/test_released.py", "tests/methods/test_grouping.py", "tests/engine"),
    *("tests/models/test_laws.py", "tests/models/test_flat_pictures.py"),
    *("tests/models/test_fused.py", "tests/training/test_export.py", "tests/demo/test_tiny.py"),
    "tests/models/test_compile.py::test_other_padding_does_not_compile_again[forward]",
)
# Prints a digest of the results of models' operators, in three dtypes, for small and large, even and odd sizes.
PROBE = """
import hashlib, os, torch
import torch.nn.functional as F
torch.set_num_threads(int(os.environ.get("PPE_TEST_THREADS", "1")))
generator, digest = torch.Generator().manual_seed(0), hashlib.sha256()
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    def draw(*shape): return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    x, sizes = draw(40, 333), ((17, 16, 17), (5, 128, 100), (60, 64, 60), (128, 1024, 128))
    for out in (
        *(draw(a, b) @ draw(b, c) for a, b, c in sizes), draw(3, 37, 16) @ draw(3, 16, 37),
        F.linear(draw(40, 128), draw(96, 128), draw(96)), F.conv3d(draw(16, 3, 2, 4, 4), draw(32, 3, 2, 4, 4)),
        F.scaled_dot_product_attention(*(draw(1, 2, 40, 64) for _ in range(3)), is_causal=True),
        F.layer_norm(x, (333,)), x.softmax(-1), x.exp(), x.sum(-1), x.cos(), x.square().mean(-1), F.silu(x), F.gelu(x),
    ):
        digest.update(out.contiguous().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


def environment(variables: dict[str, str]) -> dict[str, str]:
    others = {name for path, _ in PATHS.values() for name in path}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **variables}


def probe(variables: dict[str, str]) -> str:
    """The probe's digest under these environment variables; empty if torch does not start."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE]
    return subprocess.run(command, capture_output=True, text=True, env=environment(variables)).stdout.strip()


def run(variables: dict[str, str], arguments: list[str]) -> tuple[int, list[str]]:
    """(number of tests that passed, names of those that failed)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "2",
            "--dist",
            "worksteal",
            "-m",
            "not slow",
            f"--junitxml={report}",
            *arguments,
        ]
        done = subprocess.run(command, cwd=ROOT, env=environment(variables), capture_output=True, text=True)
        if done.returncode > 1 or not report.exists():
            sys.exit(f"pytest stopped ({done.returncode}):\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        cases = list(ET.parse(report).iter("testcase"))
    ended = {tag: [case for case in cases if case.find(tag) is not None] for tag in ("failure", "error", "skipped")}
    bad = [f"{case.get('classname')}::{case.get('name')}" for case in (*ended["failure"], *ended["error"])]
    return len(cases) - len(bad) - len(ended["skipped"]), bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run a few numerical tests under the most different paths")
    parser.add_argument("--only", action="append", choices=PATHS, help="run only this path; may be given several times")
    options, arguments = parser.parse_known_args()
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    seen, failed = ({probe({}): "as it is"} if options.quick else {}), 0
    for name in options.only or (QUICK if options.quick else PATHS):
        variables, flag = PATHS[name]
        digest = probe(variables) if not flag or flag in flags else ""
        if not digest or digest in seen:
            said = f"computes the same as {seen[digest]!r}" if digest else "this CPU has none"
        else:
            seen[digest] = name
            passed, bad = run(variables, arguments or list(QUICK_TESTS if options.quick else ()))
            said, failed = (
                f"{passed} passed, {len(bad)} failed" + "".join(f"\n    {test}" for test in bad),
                failed + len(bad),
            )
        print(f"{name:24} {said}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
