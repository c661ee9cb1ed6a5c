"""`ppe-npu export --vllm`, vLLM's OpenAI server on that folder without a flag about the compression, and the openai
client: make test-vllm."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from cases import cases

from ppe_npu.cli import main
from ppe_npu.cli.serve import SERVER

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    """An openai client of a server that was given an exported folder, and no flag about the compression."""
    openai = pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("exported") / "served"
    asked = ["--vllm", "--checkpoint", checkpoint(), "--output", str(folder), "--compression", "ppe"]
    assert main(["export", *asked]) == 0
    port, log = free_port(), tmp_path_factory.mktemp("log") / "server.txt"
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--port", str(port)]
    options.append("--trust-request-mm-kwargs")  # otherwise a request cannot have its own ratio
    command = [sys.executable, "-m", SERVER, "--model", str(folder), "--served-model-name", "tiny", *options]
    with log.open("w") as out:
        environment = {**os.environ, **QUIET}
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            made = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            wait_for(made, server, log)
            yield made
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its engine's process, too; a gentle stop takes a minute
            server.wait(60)


def wait_for(client, server, log, seconds: int = 1200) -> None:
    import openai

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            client.models.list()
            return
        except openai.APIConnectionError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def asked(case) -> list[dict]:
    """A case's one message, in which pictures replace the placeholders and the rest of the text stays."""
    pictures, content = iter(case.images), []
    for number, piece in enumerate(case.text.split("<|vision_start|><|image_pad|><|vision_end|>")):
        if number:
            file = io.BytesIO()
            next(pictures).save(file, "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
        if piece.strip():
            content.append({"type": "text", "text": f" {piece.strip()} "})
    return [{"role": "user", "content": content}]


PICTURES = [case for case in cases() if case.images and not case.videos]


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case.name)
def test_a_client_reads_what_transformers_answers(client, reference, case):
    more = {"ignore_eos": True, "return_token_ids": True}
    answer = client.chat.completions.create(
        model="tiny", messages=asked(case), temperature=0, max_tokens=16, extra_body=more
    )
    expected = reference("ppe")[case.name]
    assert answer.usage.prompt_tokens == len(expected["prompt"]) < expected["dense"]
    assert answer.choices[0].token_ids == expected["tokens"]


def test_a_stream_says_the_same(client, reference):
    case, more = PICTURES[1], {"ignore_eos": True, "return_token_ids": True}
    stream = client.chat.completions.create(
        model="tiny", messages=asked(case), temperature=0, max_tokens=16, stream=True, extra_body=more
    )
    tokens = [token for part in stream for choice in part.choices for token in getattr(choice, "token_ids", None) or ()]
    assert tokens == reference("ppe")[case.name]["tokens"]


def of_its_own(changed: dict) -> dict:
    wish = {"mm_processor_kwargs": {"ppe_compression": changed}}
    return {"ignore_eos": True, "return_token_ids": True, **wish}


def test_a_request_has_a_ratio_of_its_own(client, reference):
    case = PICTURES[1]
    answer = client.chat.completions.create(
        model="tiny", messages=asked(case), temperature=0, max_tokens=16, extra_body=of_its_own({"ratio": 0.25})
    )
    expected = reference("ppe:ratio=0.25")[case.name]
    assert answer.usage.prompt_tokens == len(expected["prompt"]) < len(reference("ppe")[case.name]["prompt"])
    assert answer.choices[0].token_ids == expected["tokens"]


@pytest.mark.parametrize(("changed", "said"), [({"ratio": 0.9}, "has room for"), ({"k": 2}, "k=2")])
def test_what_a_request_cannot_have_is_answered_with_400(client, changed, said):
    import openai

    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(
            model="tiny", messages=asked(PICTURES[0]), max_tokens=1, extra_body=of_its_own(changed)
        )
