"""`ppe-npu train`: trains with the settings of a recipe and the command line; without a model, the embedded run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, counted

EMBEDDED = Path("runs/train")  # data, base model and final model of `ppe-npu train` without arguments
# The embedded run: long enough to learn shapes, in about a minute on two cores. The demo's recipe is longer.
_TRAIN_IMAGES, _TEST_IMAGES, _QUESTIONS = 1024, 64, 12
_STEPS, _BATCH = 200, 32
# Settings of TrainConfig that are options of the same name: (type, help).
_VALUES = {
    "epochs": (float, "passes over the records (default: 1)"),
    "max_steps": (int, "optimizer steps, instead of --epochs"),
    "batch_size": (int, "records per forward pass (default: 1)"),
    "gradient_accumulation": (int, "forward passes per optimizer step (default: 1)"),
    "global_batch": (int, "records per optimizer step over all processes, instead of --gradient-accumulation"),
    "learning_rate": (float, "peak learning rate of the language model (default: 1e-5)"),
    "merger_learning_rate": (
        float,
        "learning rate of the layers between tower and decoder; 0 freezes them (default: --learning-rate)",
    ),
    "vision_learning_rate": (float, "learning rate of the vision tower; 0 freezes it (default: --learning-rate)"),
    "pvc_learning_rate": (
        float,
        "learning rate of PVC's modules (docs/pvc.md); 0 freezes them (default: --learning-rate)",
    ),
    "warmup_steps": (
        float,
        "steps in which the learning rate rises from 0; below 1, a fraction of all steps (default: 0)",
    ),
    "schedule": (str, "learning rate after the warmup: constant, linear, cosine or stable_decay (default: cosine)"),
    "weight_decay": (float, "weight decay of AdamW; biases and norms have none (default: 0)"),
    "max_grad_norm": (float, "gradients with a larger norm are scaled down to this norm (default: 1)"),
    "max_length": (int, "maximum number of tokens of a record after compression (default: no limit)"),
    "invalid": (str, "how to treat unusable records: stop, or skip and list them (default: stop)"),
    "distill_weight": (float, "weight of self-distillation in the loss, in [0, 1] (default: 0)"),
    "distill_teacher": (
        str,
        "teacher of self-distillation, which sees all tokens: present, the model as it learns, or start, a frozen "
        "copy of the model at the start (default: present)",
    ),
    "seed": (int, "seed of the order of records and of all random draws (default: 0)"),
    "validation_share": (float, "share of the records held out to report their loss (default: 0)"),
    "eval_steps": (int, "report the validation loss every EVAL_STEPS steps (default: only after the last step)"),
    "save_steps": (int, "save a checkpoint every SAVE_STEPS steps (default: no checkpoints)"),
    "save_total_limit": (int, "maximum number of checkpoints to keep (default: 2)"),
    "logging_steps": (int, "report the loss every LOGGING_STEPS steps (default: 10)"),
    "num_workers": (int, "worker processes that read data (default: 0)"),
    "resume_from_checkpoint": (
        str,
        "checkpoint to resume from: checkpoint-N in --output, a path, or last-whole, the newest undamaged one",
    ),
    "deepspeed": (str, "DeepSpeed settings: zero2, zero2_offload, zero3, zero3_offload, or a JSON file"),
}
_SWITCHES = {
    "group_by_length": "batch records of similar length together",
    "packing": "pack the records of a forward pass into one row, without padding",
    "gradient_checkpointing": "recompute activations to save memory",
    "fused_adamw": "use the device's fused AdamW",
    "tensorboard": "write curves to OUTPUT/tensorboard",
    "wandb": "send curves to Weights & Biases (configured by WANDB_PROJECT, WANDB_MODE and its other variables)",
    "allow_outside": "let records name files outside the data root",
    "allow_bin": "also read a model that has only pytorch_model.bin and no safetensors (docs/security.md)",
    "resume": "resume from the newest checkpoint in --output",
    "overwrite": "delete an earlier run in --output",
}
_ADAPTER = {
    "kind": "adapter",
    **{key: f"lora_{key}" for key in ("rank", "alpha", "dropout", "parts", "targets")},
}
FRAMES = ("fps", "nframes", "min_pixels", "max_pixels")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only `train` has; an option that is not given is None."""
    parser.add_argument("--config", metavar="RECIPE", help="YAML file of settings, or a recipe of this package")
    for name, (kind, text) in _VALUES.items():
        metavar = "FILE" if name == "deepspeed" else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text.replace("%", "%%"))
    parser.add_argument(
        "--frozen",
        nargs="+",
        metavar="PART",
        help="parts to freeze: language, merger, vision, pvc, or prefixes of parameter names; none trains all parts",
    )
    kinds = ("lora", "dora", "qlora", "none")
    parser.add_argument("--adapter", choices=kinds, help="train an adapter instead of the weights")
    parser.add_argument("--lora-rank", type=int, help="rank of the adapter's factors (default: 16)")
    parser.add_argument("--lora-alpha", type=float, help="the update is scaled by LORA_ALPHA / LORA_RANK (default: 32)")
    parser.add_argument(
        "--lora-dropout", type=float, help="fraction of the adapter's input that is zeroed in training (default: 0)"
    )
    parser.add_argument(
        "--lora-parts", nargs="+", metavar="PART", help="adapted parts: language, merger, vision (default: language)"
    )
    what = "adapted modules by name suffix, such as q_proj or attn.qkv (default: every linear layer of the parts)"
    parser.add_argument("--lora-targets", nargs="+", metavar="MODULE", help=what)
    what = "file(s) of records whose loss is reported, but which are not trained on"
    parser.add_argument("--validation-data", nargs="+", metavar="FILE", help=what)
    for name, text in _SWITCHES.items():
        action = argparse.BooleanOptionalAction
        parser.add_argument(f"--{name.replace('_', '-')}", action=action, default=None, help=text)


def run_train(args: argparse.Namespace) -> int:
    """Train with the command line's settings; without model and data, train the embedded model on generated scenes."""
    from ppe_npu.backends import device as devices
    from ppe_npu.checkpoints.loading import quiet_transformers
    from ppe_npu.cli.output import print_json
    from ppe_npu.training.args import TrainConfig
    from ppe_npu.training.recipes import load_recipe
    from ppe_npu.training.trainer import train

    recipe = {} if args.config is None else load_recipe(args.config)
    devices.resolve(args.device or recipe.get("device", "auto"))  # fails early if the device does not exist
    model, data = args.model or recipe.get("model"), args.data or recipe.get("data")
    if (model is None) != (data is None) or (recipe and data is None):
        missing = "--data" if data is None else "--model"
        raise InputError(f"{missing} is missing: give --model and --data, or neither for the embedded run")
    quiet_transformers()
    try:
        values = _embedded(args) if model is None else _asked(args, recipe, model, data)
        result = train(TrainConfig(**values), said=_whose(args, recipe, values["model"], values["compression"]))
    except InputError as error:
        raise InputError(with_flags(str(error))) from error
    if args.json:
        print_json(args, result.to_dict())
    if devices.process_rank() == 0:
        print(f"{counted(result.steps, 'step')} in {result.seconds:.0f} s; the model is in {result.final}")
        if result.skipped:
            broken = counted(result.skipped, "record")
            print(f"skipped {broken} that could not be read: see {values['output']}/skipped-*.jsonl")
    return 0


def with_flags(message: str) -> str:
    """An error message with each remedy that names a setting, "(invalid=skip)", rewritten as the flag of that name."""
    return re.sub(
        rf"\(({'|'.join((*_VALUES, *_SWITCHES))})=([^\s()]+)\)",
        lambda found: f"(--{found[1].replace('_', '-')} {found[2]})",
        message,
    )


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """TrainConfig's values that were given on the command line."""
    names = (
        "data_root",
        "device",
        "dtype",
        "min_pixels",
        "max_pixels",
        "frozen",
        "validation_data",
        *_VALUES,
        *_SWITCHES,
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    # "none" cancels the recipe's value.
    empty = {"deepspeed": None, "frozen": ()}
    return given | {name: empty[name] for name in empty if given.get(name) in ("none", ["none"])}


def _asked(args: argparse.Namespace, recipe: dict[str, Any], model: str, data: Any) -> dict[str, Any]:
    """TrainConfig's values for the user's own model and data: the recipe's, overridden by the command line's."""
    values = {**recipe, **_given(args), "model": model, "data": data, "compression": _compression(args, recipe, model)}
    values["output"] = args.output or recipe.get("output") or str(EMBEDDED)
    adapter = {key: getattr(args, name) for key, name in _ADAPTER.items() if getattr(args, name) is not None}
    if adapter.get("kind") == "none":
        values["adapter"] = None
    elif adapter:
        before = recipe.get("adapter") or {}
        values["adapter"] = {**({"kind": before} if isinstance(before, str) else before), **adapter}
    video = {name: getattr(args, name) for name in FRAMES if getattr(args, name) is not None}
    if video:
        before = dict(recipe.get("video") or {})
        if {"fps", "nframes"} & set(video):  # one replaces the other
            before = {key: value for key, value in before.items() if key not in ("fps", "nframes")}
        values["video"] = {**before, **video}
    # Either of these two on the command line replaces the other one in the recipe.
    for one, other in (("global_batch", "gradient_accumulation"), ("gradient_accumulation", "global_batch")):
        if getattr(args, one) is not None and getattr(args, other) is None:
            values.pop(other, None)
    return values


def _compression(args: argparse.Namespace, recipe: dict[str, Any], model: str) -> Any:
    """The compression named on the command line, else the recipe's, else the checkpoint's own, else ppe."""
    from ppe_npu.cli.common import compressions
    from ppe_npu.training.args import as_compression

    if args.compression is None and "compression" in recipe:
        return as_compression(recipe["compression"], positions=args.positions, ratio=args.ratio, k=args.k)
    return compressions(args, Path(model))[0]


def _whose(args: argparse.Namespace, recipe: dict[str, Any], model: str, compression: Any) -> str | None:
    """What the table says of the compression if neither the command line nor the recipe named it; else None."""
    from ppe_npu.cli.common import whose

    named = "compression" in recipe or (args.model is None and "model" not in recipe)
    return None if named else whose(args, Path(model), [compression])


def _embedded(args: argparse.Namespace) -> dict[str, Any]:
    """TrainConfig's values for the embedded run. Writes its data and an untrained model if they do not exist."""
    from filelock import FileLock

    from ppe_npu.cli.common import compressions
    from ppe_npu.config import CompressionConfig
    from ppe_npu.demo import tiny
    from ppe_npu.files import locked, new_folder, writing
    from ppe_npu.utils.reading import read_json

    root, seed = Path(args.output or EMBEDDED), args.seed or 0
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    base = root / f"base-seed{seed}"
    before = root / "train.json"
    if before.is_file():
        settings = read_json(before)
        model = settings.get("model") if isinstance(settings, dict) else None
        if not isinstance(model, str) or not Path(model).name.startswith("base-seed"):
            raise InputError(f"output {root} holds a run of another model: name another --output for the embedded run")
    with writing(root), locked(FileLock(root / ".embedded.lock"), root):  # the first of several processes writes
        write_embedded_data(root / "data")
        if not (base / "config.json").is_file():
            with new_folder(base) as folder:
                tiny.build_model(seed).save_pretrained(folder)
                tiny.build_processor().save_pretrained(folder)
    if args.compression is None and args.ratio is None and args.k is None and args.positions is None:
        compression = CompressionConfig.preset("ppe", k=4)  # divides the tiny model's rotary sections evenly
    else:
        compression = compressions(args, base)[0]
    recipe = {
        "batch_size": _BATCH,
        "max_steps": None if args.epochs else _STEPS,
        "learning_rate": 2e-3,
        "betas": (0.9, 0.98),
        "frozen": ("vision", "merger"),  # as in the demo's recipe, which gives the reason
        "warmup_steps": 20,
        "schedule": "stable_decay",
        "logging_steps": 25,
        "cache_pixels": True,
        "overwrite": not (args.resume or args.resume_from_checkpoint),
    }
    own = {"model": str(base), "data": str(root / "data" / "train.jsonl"), "compression": compression}
    return _asked(args, recipe, **{key: own[key] for key in ("model", "data")}) | own | {"output": str(root)}


def write_embedded_data(folder: Path) -> None:
    """Draw the splits of the embedded benchmark that do not exist yet."""
    from ppe_npu.demo import scenes

    for name, images, seed, simple in (("train", _TRAIN_IMAGES, 1, 0.5), ("test", _TEST_IMAGES, 2, 0.0)):
        if not (folder / f"{name}.jsonl").is_file():
            scenes.write_split(folder, name, images, seed, _QUESTIONS, simple=simple)
