"""LLaMA-Factory trains a compressed model with only a callback. `make test-frameworks` installs it."""

import json

import pytest
from own_data import DENSE, PPE, Data, watched, written
from tolerances import APART, depth_error

pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed: make test-frameworks")

SIZES = [(48, 48), (64, 36), None]
WAYS = {
    "full": {"finetuning_type": "full", "per_device_train_batch_size": 3},
    "lora": {"finetuning_type": "lora", "lora_target": "q_proj,v_proj", "per_device_train_batch_size": 3},
    "packed": {"finetuning_type": "full", "per_device_train_batch_size": 1, "neat_packing": True},
}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
COLUMNS = {"messages": "messages", "images": "images"}


def train(checkpoint: str, data: Data, monkeypatch, **way) -> None:
    """Three steps on all questions with the page's train.py and a file of settings."""
    own = {"file_name": data.file.name, "formatting": "sharegpt", "columns": COLUMNS, "tags": TAGS}
    (data.folder / "dataset_info.json").write_text(json.dumps({"own": own}))
    settings = {
        "model_name_or_path": checkpoint, "stage": "sft", "do_train": True, "dataset": "own", "template": "qwen2_vl",
        "dataset_dir": str(data.folder), "output_dir": str(data.folder / "out"), "default_system": "",
        "cutoff_len": 256, "max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "overwrite_cache": True, **way,
    }  # fmt: skip
    (data.folder / "train.yaml").write_text(json.dumps(settings))
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")  # ms-swift needs a newer version of datasets
    monkeypatch.setattr("sys.argv", ["train.py", str(data.folder / "train.yaml")])
    exec(compile(written("llamafactory"), "train.py", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("config", [PPE, DENSE], ids=["ppe", "dense"])
@pytest.mark.parametrize("way", WAYS)
def test_it_learns_from_our_own_loss(tiny_folder, tmp_path, monkeypatch, way, config):
    """Masks, labels and positions are right, because the first loss is that of our own batch of these questions."""
    data = Data(tmp_path, SIZES)
    expected, losses = data.loss(tiny_folder, config), watched(monkeypatch, config)
    train(tiny_folder, data, monkeypatch, **WAYS[way])
    assert abs(losses[0] - expected) <= APART * depth_error(2) * expected
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_batches_of_text_alone_with_the_picture_that_it_hides_in_them(tiny_folder, tmp_path, monkeypatch):
    data = Data(tmp_path, [None] * 3)
    expected, losses = data.loss(tiny_folder, PPE), watched(monkeypatch, PPE)
    train(tiny_folder, data, monkeypatch, **WAYS["full"])
    assert abs(losses[0] - expected) <= APART * depth_error(2) * expected
    assert losses[2] < losses[0]
