"""Answers follow the protocol, not a checkpoint's generation_config.json; what a user asks for is recorded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from command_line import refused
from PIL import Image

from ppe_npu.checkpoints.generation_defaults import fields, of_checkpoint
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.errors import InputError
from ppe_npu.evaluation.decoding import generation_settings, ignored
from ppe_npu.evaluation.generation import generate
from ppe_npu.evaluation.report import write_report
from ppe_npu.evaluation.runner import evaluate
from ppe_npu.models import compress

pytestmark = pytest.mark.half

# For each field, a value that differs from what generate() does by default; fields not listed here get 3.
OTHER = {
    "use_cache": False,
    "repetition_penalty": 1.5,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(4, 40)),
    "begin_suppress_tokens": list(range(4, 40)),
    "bad_words_ids": [[token] for token in range(4, 40)],
    "sequence_bias": [[[7], 50.0]],
    "forced_eos_token_id": 2,
    "forced_bos_token_id": 2,
    "exponential_decay_length_penalty": [1, 9.0],
    "min_length": 30,
    "max_length": 5,
    "max_time": 0.0,
    "stop_strings": ["red"],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "cache_implementation": "static",
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 9.0},
    "assistant_confidence_threshold": 0.9,
    "num_assistant_tokens_schedule": "heuristic",
    "speculation_type": "dflash",
    "early_stopping": "never",
    "temperature": 0.7,
    "constraints": [3],
    "force_words_ids": [[3]],
    "compile_config": {"backend": "eager"},
    **dict.fromkeys(("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0.5),
    **dict.fromkeys(("do_sample", "renormalize_logits", "remove_invalid_values", "token_healing", "use_mtp"), True),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), True),
    **dict.fromkeys(("return_dict_in_generate", "is_assistant", "low_memory", "disable_compile"), True),
}
PICTURE = Image.effect_noise((64, 80), 90).convert("RGB")


class Shapes:
    """Three questions about one picture."""

    name, modality = "shapes", "image"

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return {"index": number, "prompt": f"shape red {number}", "GT": "a", "type": "t", "image": PICTURE}


def asked(processor):
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "shape red"}]
    return build_inputs(processor, [[{"role": "user", "content": content}]])


def answer(model, processor, **more):
    done = generate(model, processor, asked(processor), 4, **more)
    return done.answers, done.new_tokens, done.kv_bytes


@pytest.fixture(scope="module")
def model(tiny_folder):
    return compress(load_model(tiny_folder), CompressionConfig.preset("ppe", k=4))


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    """checkpoint({name: value}, file=...) -> a copy of the tiny checkpoint with these generation settings."""

    def write(values, file="generation_config.json"):
        for path in Path(tiny_folder).iterdir():
            if path.name not in ("generation_config.json", file):
                (tmp_path / path.name).symlink_to(path)
        own = json.loads((Path(tiny_folder) / file).read_text())
        (tmp_path / file).write_text(values if isinstance(values, str) else json.dumps(own | values))
        return tmp_path

    return write


@pytest.mark.ci
def test_no_setting_of_a_checkpoint_changes_an_answer(model, tiny_processor):
    """Sets every field of the installed transformers, alone and all together."""
    plain, own = answer(model, tiny_processor), dict(vars(model.generation_config))
    assert len(fields()) > 50
    every = {name: OTHER.get(name, 3) for name in fields()}
    try:
        for values in (*({name: value} for name, value in every.items()), every):
            vars(model.generation_config).update(values)
            assert answer(model, tiny_processor) == plain, values
            assert set(ignored(values, {})) == set(values)
            assert vars(model.generation_config) == {**own, **values}
            vars(model.generation_config).update(own)
    finally:
        vars(model.generation_config).clear()
        vars(model.generation_config).update(own)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    "name",
    [
        *("num_return_sequences", "use_cache", "cache_implementation", "repetition_penalty"),
        *("output_attentions", "compile_config", "assistant_ensemble_weight"),
    ],
)
def test_a_checkpoint_with_settings_loads_and_answers_alike(checkpoint, model, tiny_processor, file, name):
    folder = checkpoint({name: OTHER.get(name, 2)}, file)
    other = compress(load_model(folder), CompressionConfig.preset("ppe", k=4))
    assert answer(other, load_processor(folder)) == answer(model, tiny_processor)
    value = OTHER.get(name, 2)
    expected = {name: json.dumps(value) if isinstance(value, dict) else value} if name in fields() else {}
    assert ignored(of_checkpoint(folder), {}) == expected


def test_the_end_tokens_of_a_checkpoint_are_taken(checkpoint, model, tiny_processor):
    first = tiny_processor.tokenizer(answer(model, tiny_processor)[0][0].split()[0])["input_ids"]
    other = compress(load_model(checkpoint({"eos_token_id": first})), CompressionConfig.preset("ppe", k=4))
    assert answer(other, tiny_processor)[1] == [1]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            '"x"',
            "[" * 100_000,
            f'{{"max_length": {"9" * 5000}}}',
            "\ufeff{}",
            '{"eos_token_id": "2"}',
            '{"eos_token_id": [9223372036854775808]}',
            '{"eos_token_id": [[2]]}',
        ),
        *('{"pad_token_id": 1.5}', '{"repetition_penalty": "high"}', '{"do_sample": "no"}', '{"suppress_tokens": 3}'),
    ],
)
def test_a_broken_file_is_named_before_the_weights_are_read(checkpoint, write_image, run, monkeypatch, text):
    folder = checkpoint(text)
    monkeypatch.setattr("ppe_npu.cli.describe.load_model", lambda *_: pytest.fail("the weights were read"))
    image = write_image("a.png")
    refused(run("describe", "--model", folder, "--image", image, "--device", "cpu", "--k", 4), "generation_config.json")
    with pytest.raises(InputError, match=r"generation_config\.json"):
        load_model(folder)


def test_what_is_asked_for_is_used_recorded_and_part_of_the_run(checkpoint, tiny_processor, tmp_path_factory, caplog):
    folder, out = checkpoint({"repetition_penalty": 1.5, "use_cache": False}), tmp_path_factory.mktemp("runs")
    own = compress(load_model(folder), CompressionConfig.preset("ppe", k=4))

    def run(name, **more):
        results = evaluate(own, tiny_processor, Shapes(), out / name, max_new_tokens=6, **more)
        rows = (out / name / "predictions.jsonl").read_text().splitlines()
        return results, sorted(json.loads(row)["answer"] for row in rows)

    with caplog.at_level(logging.WARNING, "ppe_npu"):
        greedy, plain = run("greedy")
        run("again")
    said = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert len(said) == 1
    assert "repetition_penalty=1.5, use_cache=false" in said[0] or "use_cache=false, repetition_penalty=1.5" in said[0]
    assert greedy["ignored"] == {"repetition_penalty": 1.5, "use_cache": False}
    assert greedy["settings"]["generation"]["repetition_penalty"] == 1.0
    assert greedy["settings"]["generation"]["do_sample"] is False
    single, penalised = run("single", generation={"repetition_penalty": 1.5})
    assert penalised != plain
    assert single["settings"]["generation"]["repetition_penalty"] == 1.5
    assert single["ignored"] == {"use_cache": False}
    assert run("own", generation="checkpoint")[1] == penalised
    text = write_report([greedy, single], out / "report.md", "Title")[0].read_text()
    assert "Generation: greedy; repetition_penalty=1.5." in text
    assert "Ignored generation settings of the checkpoint: " in text
    with pytest.raises(InputError, match=r"other generation settings \(then greedy, now repetition_penalty=1\.5\)"):
        run("greedy", generation=["repetition_penalty=1.5"])


@pytest.mark.parametrize("says", [{}, {"repetition_penalty": 1.5}, {"do_sample": True, "temperature": 0.7}])
def test_a_run_of_the_first_edition_goes_on_where_its_answers_are_ours(
    checkpoint, tiny_processor, tmp_path_factory, says
):
    """It recorded neither generation settings nor end tokens, and left penalties in force."""
    own, out = load_model(checkpoint(says)), tmp_path_factory.mktemp("runs")
    evaluate(own, tiny_processor, Shapes(), out, max_new_tokens=2)
    settings = json.loads((out / "settings.json").read_text())
    del settings["generation"], settings["end_tokens"]
    (out / "settings.json").write_text(json.dumps(settings))
    if "repetition_penalty" not in says:
        assert evaluate(own, tiny_processor, Shapes(), out, max_new_tokens=2)["samples"] == 3
    else:
        with pytest.raises(InputError, match="by an earlier edition, which used the checkpoint's own"):
            evaluate(own, tiny_processor, Shapes(), out, max_new_tokens=2)
        assert evaluate(own, tiny_processor, Shapes(), out, max_new_tokens=2, generation="checkpoint")["samples"] == 3


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 3, "length_penalty": 2.0},
        {"temperature": 2, "do_sample": True, "repetition_penalty": 2},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [9, 12], "bad_words_ids": [[7, 8]], "min_new_tokens": 4},
        {"sequence_bias": [[[7], 50]], "renormalize_logits": True, "forced_eos_token_id": 2},
    ],
    ids=lambda values: next(iter(values)),
)
def test_everything_that_can_be_asked_for_works(model, tiny_processor, values):
    import torch

    asked = generation_settings(values, {})
    found = [(torch.manual_seed(0), answer(model, tiny_processor, generation=asked))[1] for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] != answer(model, tiny_processor)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("use_cache=false", "is not supported"),
        ("num_return_sequences=2", "is not supported"),
        ("max_new_tokens=3", "--max-new-tokens"),
        ("repetition_penalty", "name=value"),
        ("repetition_penalty=high", "repetition_penalty=high must be a number in [1e-6, 1e6]"),
        ("repetition_penalty=NaN", "must be a number in [1e-6, 1e6]"),
        ("repetition_penalty=true", "must be a number in [1e-6, 1e6]"),
        ("repetition_penalty=1e-300", "must be a number in [1e-6, 1e6]"),
        ("num_beams=1000000000", "num_beams=1000000000 must be a whole number in [1, 1024]"),
        ("suppress_tokens=3", "must be a list of token ids"),
        ("suppress_tokens=[3, 9223372036854775808]", "suppress_tokens: the model has no token 9223372036854775808"),
        ("bad_words_ids=[[3, 99999]]", "bad_words_ids: the model has no token 99999: use ids below"),
        ("sequence_bias=[[[99999], 1.0]]", "sequence_bias: the model has no token 99999"),
        (f"sequence_bias=[[[7], 1{'0' * 400}]]", "must be a list of [token ids, bias]"),
        ("forced_eos_token_id=99999", "forced_eos_token_id: the model has no token 99999"),
        (f"suppress_tokens={[3] * 300 + [99999]}", "the model has no token 99999"),  # longer than a file's name may be
        ("", "name=value"),
        ("x" * 5000, "name=value"),
        ("x" * 5000 + "=1", "is not supported"),
        ("do_sample=yes", "must be true or false"),
        ("temperature=0.5", "has no effect without do_sample=true"),
        ("length_penalty=0.5", "has no effect without num_beams=2"),
        ('stop_strings=["red"]', "is not supported"),
    ],
)
def test_what_cannot_be_asked_for_is_said(tiny_folder, write_image, run, asked, words):
    image, where = write_image("a.png"), ("--device", "cpu", "--model", tiny_folder)
    result = run("describe", *where, "--image", image, "--k", 4, "--generation", asked)
    refused(result, words)
    assert len(result[2]) < 800


@pytest.mark.ci
def test_describe_says_once_what_it_leaves_out_and_takes_what_is_asked(checkpoint, write_image, run):
    folder, image = checkpoint({"repetition_penalty": 1.5, "use_cache": False, "do_sample": True}), write_image("p.png")
    common = ("describe", "--model", folder, "--image", image, "--device", "cpu", "--k", 4, "--max-new-tokens", 6)
    code, greedy, said = run(*common)
    assert code == 0, said
    assert said.count("not used") == 1
    assert "repetition_penalty=1.5" in said
    code, penalised, said = run(*common, "--generation", "checkpoint", "do_sample=false")
    assert code == 0, said
    assert "repetition_penalty" not in said.partition("): answers")[0]
    assert penalised.splitlines()[0] != greedy.splitlines()[0]
    code, out, said = run(*common, "--generation", "num_beams=2")
    assert code == 0, said
    assert out.splitlines()[0]


@pytest.mark.parametrize(
    "template",
    [
        str,
        lambda text: {"default": text, "tools": "no"},
        lambda text: {"only": text},
        lambda text: [{"name": "tools", "template": "no"}, {"name": "default", "template": text}],
    ],
)
def test_a_chat_template_in_tokenizer_config_is_taken(checkpoint, tiny_processor, template):
    folder = checkpoint({})
    text, file = (folder / "chat_template.jinja").read_text(), folder / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text()) | {"chat_template": template(text)}
    for path in (folder / "chat_template.jinja", file):
        path.unlink()
    file.write_text(json.dumps(tokenizer))
    assert load_processor(folder).chat_template == tiny_processor.chat_template


def test_chat_templates_of_which_none_is_the_default_are_named(checkpoint):
    folder = checkpoint({})
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text()) | {"chat_template": {"a": "x", "b": "y"}}
    file.unlink()
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="chat templates a, b: name one default"):
        load_processor(folder)


@pytest.mark.parametrize("value", [51, -1e300, float("inf"), float("nan")])
def test_a_checkpoints_own_value_that_cannot_be_is_said_to_be_its_own(value):
    own = {"num_beams": 3, "length_penalty": value}
    assert generation_settings(None, own) == {}
    words = r"^the checkpoint's generation length_penalty=\S+ must be a number in \[-50, 50\]: override it with length_"
    with pytest.raises(InputError, match=words):
        generation_settings("checkpoint", own)
    assert generation_settings(["checkpoint", "length_penalty=2.0"], own) == {"length_penalty": 2.0, "num_beams": 3}
    with pytest.raises(InputError, match=r"^generation length_penalty=51 must be a number in \[-50, 50\]$"):
        generation_settings(["num_beams=2", "length_penalty=51"], own)
