"""ms-swift trains a compressed model through a short plug-in. `make test-frameworks` installs it."""

import pytest
from own_data import DENSE, PPE, Data, watched, written
from tolerances import APART, depth_error

from ppe_npu.demo import tiny

pipelines = pytest.importorskip("swift.pipelines", reason="ms-swift is not installed: make test-frameworks")

SIDE = 56  # of pictures, in pixels: the smallest that ms-swift does not resize


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.build_model(seed=0).save_pretrained(folder)
    tiny.build_processor(side=SIDE).save_pretrained(folder)
    return str(folder)


def train(checkpoint: str, data: Data, monkeypatch, *way: str) -> None:
    """Three steps on all questions with the page's plug-in."""
    plugin = data.folder / "ppe_plugin.py"
    plugin.write_text(written("swift"))
    from swift.template.templates.qwen import Qwen2VLTemplate

    # ms-swift hard-codes the token's id in the real vocabulary.
    monkeypatch.setattr(Qwen2VLTemplate, "image_token_id", tiny.VOCABULARY["<|image_pad|>"])
    monkeypatch.setattr(Qwen2VLTemplate, "_post_encode", Qwen2VLTemplate._post_encode)  # the plug-in changes it
    pipelines.sft_main([
        "--model", checkpoint, "--model_type", "qwen2_5_vl", "--template", "qwen2_5_vl",
        "--use_hf", "true", "--check_model", "false",
        "--external_plugins", str(plugin), "--callbacks", "ppe", "--dataset", str(data.file), "--system", "",
        "--torch_dtype", "float32", "--use_cpu", "true", "--output_dir", str(data.folder / "out"),
        "--max_steps", "3", "--learning_rate", "1e-3", "--per_device_train_batch_size", "3",
        "--gradient_accumulation_steps", "1", "--split_dataset_ratio", "0", "--report_to", "none",
        "--save_strategy", "no", "--logging_steps", "1", "--dataset_num_proc", "1", "--dataloader_num_workers", "0",
        *way,
    ])  # fmt: skip


@pytest.mark.parametrize("config", [PPE, DENSE], ids=["ppe", "dense"])
@pytest.mark.parametrize("way", ["full", "lora"])
def test_it_learns_from_our_own_loss(checkpoint, tmp_path, monkeypatch, way, config):
    """Masks, labels and positions are right, because the first loss is that of our own batch of these questions."""
    data = Data(tmp_path, [(SIDE, SIDE), (SIDE, SIDE), None])
    expected, losses = data.loss(checkpoint, config), watched(monkeypatch, config)
    train(checkpoint, data, monkeypatch, "--tuner_type", way)
    assert abs(losses[0] - expected) <= APART * depth_error(2) * expected
    assert len(losses) == 3
    assert losses[2] < losses[0]
