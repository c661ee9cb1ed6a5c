"""Scripts beside the tests. Each call runs in a process of its own, a fork of one that has imported what it needs.

python tests/serving/scripts_of_serving.py SCRIPT: for each line of standard input, a list of arguments in JSON, calls
the script's main() and answers a line with the exit status.
"""

import functools
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent


def run_script(name: str, *arguments: str, seconds: int = 600, newer: bool = False) -> None:
    """Calls main(*arguments) of a script; unless it succeeds, the test fails with the end of what it printed.

    newer: with the newer transformers that make test-vllm installs beside vLLM's.
    """
    process, log = _waiting(name, newer)
    start = log.stat().st_size
    process.stdin.write(json.dumps(arguments) + "\n")
    process.stdin.flush()
    answered, _, _ = select.select([process.stdout], [], [], seconds)
    answer = process.stdout.readline().strip() if answered else f"not done after {seconds} seconds"
    if not answered or not answer:
        os.killpg(process.pid, signal.SIGKILL)  # its fork, too
        _waiting.cache_clear()
    assert answer == "0", f"{name}: {answer}\n" + log.read_bytes()[start:].decode(errors="replace")[-4000:]


@functools.cache
def _waiting(name: str, newer: bool) -> tuple[subprocess.Popen, Path]:
    """(a process that has imported a script and waits, the file with its output). It ends when this process does."""
    path = [f"{sys.prefix}/newer"] * newer + [str(HERE.parents[1]), str(HERE), str(HERE.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    log = Path(tempfile.mkdtemp()) / "log.txt"
    with log.open("w") as out:
        command = [sys.executable, __file__, Path(name).stem]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": out}
        process = subprocess.Popen(command, env=environment, **pipes, text=True, start_new_session=True)
    return process, log


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a script prints must not be taken for an answer
    script = import_module(name)
    for line in sys.stdin:
        process = multiprocessing.get_context("fork").Process(target=script.main, args=json.loads(line))
        process.start()
        process.join()
        print(process.exitcode, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
