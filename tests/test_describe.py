"""ppe-npu describe: it answers about pictures and videos, and every mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import refused
from safetensors.torch import load_file, save_file


def cut(path: str) -> str:
    """Writes the beginning of a file beside it, like an interrupted download; returns its path."""
    data = Path(path).read_bytes()
    broken = Path(path).with_name("broken" + Path(path).suffix)
    broken.write_bytes(data[: len(data) // 3])
    return str(broken)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_describe_an_image(run, tiny_folder, write_image, dtype):
    asked = ["--compression", "ppe", "--ratio", 0.45, "--k", 4, "--max-new-tokens", 5, "--dtype", dtype]
    image = write_image("a.png")
    code, out, err = run("describe", "--model", tiny_folder, "--image", image, "--prompt", "shape red", *asked)
    assert code == 0, err
    assert "visual tokens       36 before, 17 after (47.2 % kept)" in out
    for words in ("time to first token", "tokens/s", "KV cache"):
        assert words in out


def test_describe_tells_what_a_step_inside_the_tower_spares(run, tiny_folder, write_image):
    where = ("describe", "--model", tiny_folder, "--image", write_image("a.png"), "--device", "cpu", "--json")
    code, out, err = run(*where, "--max-new-tokens", 1, "--compression", "tome_tower:ratio=0.5,merge_blocks=[0]")
    assert code == 0, err
    tower = json.loads(out)["tower"]
    assert tower["flops"] < tower["dense_flops"]
    line = next(line for line in err.splitlines() if line.startswith("vision tower "))
    share, spent = tower["flops"] / tower["dense_flops"], tower["milliseconds"]
    assert f"({share:.1%} of untouched) in {spent:.1f} ms; decoder " in line
    assert line.endswith(f" in {tower['decoder_milliseconds']:.1f} ms")
    dense = run(*where, "--max-new-tokens", 1, "--compression", "dense")
    assert dense[0] == 0
    assert "vision tower" not in dense[2]


def test_describe_a_video_and_two_images_where_they_stand(run, tiny_folder, write_clip, write_image):
    visuals = ["--video", write_clip("c.mp4"), "--image", write_image("a.png"), "--image", write_image("b.png", 1)]
    prompt = "count <image> and <video> then <image> shape"
    asked = ["--nframes", 4, "--compression", "dense", "--max-new-tokens", 2, "--device", "cpu", "--prompt", prompt]
    code, out, err = run("describe", "--model", tiny_folder, *visuals, *asked)
    assert code == 0, err
    frames = int(out.split("visual tokens")[1].split()[0]) - 2 * 36
    assert frames > 0
    assert frames % 2 == 0


@pytest.mark.ci
def test_describe_streams_its_answer_as_generate_gives_it(run, tiny_folder, write_image):
    from ppe_npu.checkpoints.loading import load_model, load_processor
    from ppe_npu.config import CompressionConfig
    from ppe_npu.data.inputs import build_inputs
    from ppe_npu.evaluation.generation import generate
    from ppe_npu.models import compress

    image = write_image("a.png")
    asked = ["--compression", "keep_one", "--max-new-tokens", 6, "--device", "cpu", "--prompt", "row blue"]
    code, out, err = run("describe", "--model", tiny_folder, "--image", image, *asked)
    assert code == 0, err
    content = [{"type": "image", "image": image}, {"type": "text", "text": "row blue"}]
    processor, model = load_processor(tiny_folder), load_model(tiny_folder)
    inputs = build_inputs(processor, [[{"role": "user", "content": content}]])
    answer = generate(compress(model, CompressionConfig.preset("keep_one")), processor, inputs, 6).answers[0]
    assert out.split("\n\n")[0].split() == answer.split()


def test_describe_takes_the_checkpoints_own_compression(run, tiny_folder, write_image, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(tiny_folder).iterdir():
        os.link(file, folder / file.name)
    (folder / "compression.json").write_text(json.dumps({"positions": "ppe", "k": 2, "ratio": 0.25}))
    asked = ["describe", "--model", folder, "--image", write_image("a.png"), "--max-new-tokens", 1, "--device", "cpu"]
    code, out, err = run(*asked)
    assert code == 0, err
    assert "36 before, 9 after" in out
    assert "36 before, 36 after" in run(*asked, "--compression", "dense")[1]


@pytest.mark.ci
def test_describe_refuses(run, tiny_folder, write_image, write_clip, tmp_path):
    image, clip = write_image("a.png"), write_clip("c.mp4")
    base = ["describe", "--device", "cpu", "--compression", "keep_one"]
    model = [*base, "--model", tiny_folder]
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused(run(*model, "--image", tmp_path / "none.jpg"), "none.jpg", "does not exist")
    refused(run(*model, "--image", tmp_path / "text.jpg"), "text.jpg", "cannot be read")
    refused(run(*model, "--image", cut(image)), "broken.png", "cannot be read")
    refused(run(*model, "--video", tmp_path / "empty.mp4"), "empty.mp4")
    refused(run(*model, "--video", cut(clip)), "broken.mp4")
    refused(run(*model, "--video", image, "--fps", 1, "--nframes", 2), "fps", "nframes")
    refused(run(*model, "--image", image, "--prompt", "<video> what?"), "0 <image> for 1 image")
    refused(run(*model, "--image", image, "--image", image, "--prompt", "<image> what?"), "1 <image> for 2 images")
    refused(run(*model, "--prompt", "what?"), "--image or --video")
    refused(run(*model, "--image", image, "--prompt", " "), "--prompt is empty")
    refused(run(*model, "--image", image, "--max-new-tokens", 0), "--max-new-tokens 0")
    refused(run(*model, "--image", image, "--ratio", 2), "ratio")
    refused(run(*model, "--image", image, "--show", image), "--show", "a.png is also an input: name another file")
    refused(run(*base[:3], "--model", tiny_folder, "--image", image, "--compression", "best"), "best", "chatunivi")
    refused(run(*base[:3], "--model", tiny_folder, "--image", image, "--compression", "ppe", "--k", 9), "k=9")
    refused(run("describe", "--image", image), "--model")


def test_describe_refuses_folders_that_are_no_checkpoint(run, tiny_folder, write_image, tmp_path):
    asked = ["describe", "--device", "cpu", "--image", write_image("a.png"), "--model"]
    folder = tmp_path / "model"
    refused(run(*asked, folder), folder, "does not exist")
    folder.mkdir()
    refused(run(*asked, folder), folder, "config.json")
    (folder / "config.json").write_text("{")
    refused(run(*asked, folder), "cannot be read as JSON")
    config = json.loads((Path(tiny_folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    refused(run(*asked, folder), folder, "no weights")
    (folder / "model.safetensors").write_bytes(b"nothing" * 100_000)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    refused(run(*asked, folder), "LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration")
    (folder / "config.json").write_text(json.dumps(config))
    refused(
        run(*asked, folder, "--k", 9), "k=9 exceeds the smallest", "choose k from 1 to 8"
    )  # before anything is loaded
    refused(run(*asked, folder, "--compression", "keep_one"), "processor of")
    for file in Path(tiny_folder).iterdir():
        if not (folder / file.name).exists():
            os.link(file, folder / file.name)
    refused(run(*asked, folder, "--compression", "keep_one"), folder, "cannot be loaded")
    weights = load_file(f"{tiny_folder}/model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(run(*asked, folder, "--compression", "keep_one"), folder, "lacks 1 weight (", "lm_head.weight")
