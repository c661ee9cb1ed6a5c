"""TRL's fused head, SFTTrainer and GRPOTrainer on compressed models; `make test-integrations` installs TRL.

A model is compressed before TRL gets it, or afterwards.
"""

import pytest
import torch
from foreign import FAMILIES, SETTINGS, compressed, pictures, random_model
from PIL import Image
from prompts import GREEDY
from support import VIDEO_ID, Prompt, batch
from tolerances import APART, depth_error, printed

from ppe_npu import CompressionConfig, compress
from ppe_npu.demo.tiny import HIDDEN, build_model, build_processor

utils = pytest.importorskip("trl.trainer.utils", reason="trl is not installed: see docs/compatibility.md")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["compress", "head"])
@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_the_fused_head_scores_what_the_models_own_loss_does(setting, first, family):
    inputs, plain = pictures(), random_model(family=family)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = inputs["input_ids"][:, -4:]
    expected = compressed(plain, setting)(**inputs, labels=labels).loss
    if first == "head":
        utils.add_fused_lm_head(plain)
    model = compress(plain, SETTINGS[setting])
    if first == "compress":
        utils.add_fused_lm_head(model)
    for others in ({}, {"use_cache": False}):
        found = model(**inputs, **others, labels=labels, fused_lm_head=True).loss
        assert (found - expected).abs() <= 64 * torch.finfo(expected.dtype).eps * expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_the_fused_head_gives_a_policys_log_probabilities_and_entropies(setting, family):
    """Called as GRPOTrainer does: prompts padded on the left, answers on the right, labels of answers alone."""
    inputs, model = pictures(), compressed(random_model(family=family), setting)
    asked = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True, **GREEDY}
    answer = model.generate(**inputs, **asked)
    every = torch.stack(answer.logits, 1).log_softmax(-1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 5, dtype=torch.long)], 1)
    mask[1, -2:] = 0  # the second answer ended early
    labels = answer.sequences.masked_fill(mask == 0, -100)
    labels[:, :-5] = -100
    given = {name: value for name, value in inputs.items() if name in ("pixel_values", "image_grid_thw")}
    given["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 5))
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    found = model(input_ids=answer.sequences, attention_mask=mask, **given, labels=labels, fused_lm_head=True)
    kept = mask[:, -5:].bool()
    bound = torch.finfo(every.dtype).eps * model.config.text_config.hidden_size * every[kept].abs().max()
    chosen = every.gather(-1, answer.sequences[:, -5:, None])[..., 0]
    assert (found.log_probs[:, -5:] - chosen)[kept].abs().max() <= bound
    assert (found.entropy[:, -5:] + (every.exp() * every).sum(-1))[kept].abs().max() <= bound


class Turns:
    """Collates a prompt with a picture and one with a clip; the last tokens of each are the answer."""

    def __init__(self, family: str):
        clip = ("frames", (2, 2, 3)) if family == "qwen3_vl" else ("video", (2, 2, 3))
        self.family = family
        self.prompts = [Prompt([6, "start", ("image", (1, 4, 5)), 5], seed=1), Prompt([3, "start", clip, 6], seed=2)]

    def __call__(self, rows):
        inputs = batch(*(self.prompts[row["number"]] for row in rows), side="right")
        if self.family != "qwen2_5_vl":
            inputs.pop("second_per_grid_ts", None)
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = ((ids == VIDEO_ID - 1) + 2 * (ids == VIDEO_ID)).long()
        labels = torch.full_like(ids, -100)
        for row, mask in zip(range(len(ids)), inputs["attention_mask"]):
            end = int(mask.sum())
            labels[row, end - 4 : end] = ids[row, end - 4 : end]
        return inputs | {"labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["compress", "trainer"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_sft_learns_from_the_models_own_loss(tmp_path, setting, first, family):
    """Compresses the model before or after the trainer gets it; it learns, and first logs the loss of a plain pass."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    collate, plain = Turns(family), random_model(family=family)
    expected = compressed(plain, setting)(**collate([{"number": 0}, {"number": 1}])).loss.item()
    args = trl.SFTConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[], use_cpu=True,
        seed=0, remove_unused_columns=False, save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True,
        bf16=False, logging_steps=1, dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False,
        max_length=None,
    )  # fmt: skip
    model = compress(plain, SETTINGS[setting]) if first == "compress" else plain
    rows = datasets.Dataset.from_dict({"number": [0, 1]})
    trainer = trl.SFTTrainer(model, args, train_dataset=rows, data_collator=collate, processing_class=_tokenizer())
    if first == "trainer":
        compress(trainer.model, SETTINGS[setting])
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert abs(logged[0] - expected) <= printed(4) + APART * depth_error(3) * expected
    assert logged[1] < logged[0]


class Told:
    """Records what a policy drew in generate(), and how GRPOTrainer scores it before the first step."""

    def __init__(self, model, monkeypatch, trainers):
        self.wrote, self.scored, generate = {}, [], model.generate
        score = trainers._get_per_token_logps_and_entropies

        def writes(**inputs):
            found = generate(**inputs, return_dict_in_generate=True, output_logits=True)
            answers = found.sequences[:, inputs["input_ids"].shape[1] :]
            drawn = torch.stack(found.logits, 1).log_softmax(-1).gather(-1, answers[..., None])[..., 0]
            self.wrote |= {tuple(ids.tolist()): row for ids, row in zip(answers, drawn)}
            return found.sequences

        def scores(trainer, model, ids, mask, kept, **kwargs):
            found = score(trainer, model, ids, mask, kept, **kwargs)
            parts = (part[:, -kept:].unbind() for part in (ids, mask.bool(), found[0].detach()))
            self.scored += [(tuple(ids[real].tolist()), row[real]) for ids, real, row in zip(*parts)]
            return found

        monkeypatch.setattr(model, "generate", writes)
        monkeypatch.setattr(trainers, "_get_per_token_logps_and_entropies", scores)

    def drawn(self, answer):
        return next(row[: len(answer)] for ids, row in self.wrote.items() if ids[: len(answer)] == answer)


@pytest.mark.parametrize("first", ["compress", "trainer"])
@pytest.mark.parametrize("setting", ["dense", "ppe", "cascade"])
def test_grpo_scores_a_policys_answers_as_it_wrote_them(tmp_path, monkeypatch, setting, first):
    """One step of GRPOTrainer on messages and pictures; the model is compressed before or after it gets it."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    config = CompressionConfig.preset("ppe", ratio=0.25, k=4, layers=[1]) if setting == "cascade" else SETTINGS[setting]
    model, picture = build_model(seed=0), Image.radial_gradient("L").convert("RGB")
    asked = {"row red": picture.resize((48, 48)), "column blue": picture.resize((96, 48))}
    rows = [{"prompt": [{"role": "user", "content": text}], "image": one} for text, one in asked.items()]
    args = trl.GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_generations=2,
        max_completion_length=5, report_to=[], use_cpu=True, seed=0, save_strategy="no", dataloader_pin_memory=False,
        disable_tqdm=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    if first == "compress":
        compress(model, config)
    trainer = trl.GRPOTrainer(
        model, reward_funcs=lambda completions, **_: [float(len(one[0]["content"])) for one in completions], args=args,
        train_dataset=datasets.Dataset.from_list(rows), processing_class=build_processor(),
    )  # fmt: skip
    if first == "trainer":
        compress(trainer.model, config)
    told = Told(model, monkeypatch, trl.GRPOTrainer)
    trainer.train()
    assert len(told.scored) == 4
    for answer, found in told.scored:
        expected = told.drawn(answer)
        assert (found - expected).abs().max() <= torch.finfo(found.dtype).eps * HIDDEN * expected.abs().max()


def _tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
