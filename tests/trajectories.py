"""Twenty steps of a tiny model that learns, with any device's operators; tests compare them with plain fp64 PyTorch.

tests/data/trajectories.json has the losses and ids of each device and version that has run them, with the bound: the
tests add those of this machine if PPE_RECORD=1, and replace what it recorded before.
"""

import copy
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tolerances import APART, depth_error, drift_error, learnt_error, loss_near, rms

from ppe_npu import compress
from ppe_npu.backends.common import IGNORED
from ppe_npu.backends.device import exact_matmul
from ppe_npu.models.fused import fuse
from ppe_npu.parity.model import SETTINGS, parity_inputs, parity_model

RECORDS = Path(__file__).parent / "data" / "trajectories.json"
STEPS, RATE = 20, 5e-3
DEPTH = 2 * (1 + 3)  # layers that a gradient passes: a block of the tower and three layers, there and back
NEW_TOKENS = 6


@dataclass(frozen=True)
class Trajectory:
    """The results of such a run, on the CPU in fp64.

    Args:
        losses: [STEPS + 1], before each step of gradient descent and after the last. words, weights: at those times,
          log-probabilities [text, vocab] and all parameters [P]. ids: the answer after the last step.
    """

    losses: list[float]
    words: list[torch.Tensor]
    weights: list[torch.Tensor]
    ids: list[list[int]]


def walk(setting: str, device: str = "cpu", dtype: torch.dtype = torch.float32, fused: bool = True) -> Trajectory:
    """Runs the steps. fused: with the operators of ppe_npu.backends; otherwise as transformers computes."""
    model = copy.deepcopy(parity_model()).to(device, dtype)
    compress(fuse(model) if fused else model, SETTINGS[setting])
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() and name != "second_per_grid_ts" else value.dtype)
        for name, value in parity_inputs().items()
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, found = torch.optim.SGD(parameters, lr=RATE), Trajectory([], [], [], [])
    with exact_matmul():
        for step in range(STEPS + 1):
            out = model(**inputs)
            found.losses.append(out.loss.item())
            said = out.logits.detach().double().cpu().log_softmax(-1)
            found.words.append(said[out.labels.cpu() != IGNORED])
            found.weights.append(torch.cat([part.detach().double().cpu().flatten() for part in parameters]))
            if step < STEPS:
                optimizer.zero_grad()
                out.loss.backward()
                optimizer.step()
        prompt = {name: value for name, value in inputs.items() if name != "labels"}
        ids = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False, suppress_tokens=[60, 61, 62, 63])
    found.ids.extend(ids[:, -NEW_TOKENS:].tolist())
    return found


def apart(found: Trajectory, exact: Trajectory) -> dict[str, int]:
    """{name: the first step after which it is further from fp64 than rounding explains}, for those of "losses", "words"
    and "weights" that ever are."""
    out: dict[str, int] = {}
    path = 0.0
    for step in range(STEPS + 1):
        if step:
            path += rms(exact.weights[step] - exact.weights[step - 1])
        drift = drift_error(path, step, rms(exact.weights[step]), DEPTH)
        told = {
            "losses": found.losses[step] == loss_near(exact.losses[step], DEPTH, step + 1),
            "words": rms(found.words[step] - exact.words[step])
            <= learnt_error(drift / rms(exact.weights[step]), exact.words[step], DEPTH),
            "weights": rms(found.weights[step] - exact.weights[step]) <= drift,
        }
        for name, right in told.items():
            if not right:
                out.setdefault(name, step)
    return out


def recorded() -> list[dict]:
    return json.loads(RECORDS.read_text())


def compare(setting: str, device: str, found: Trajectory, exact: Trajectory) -> None:
    """Checks that the recordings of all devices and versions, and `found`, equal `exact` up to rounding, with the same
    ids; records `found` if that is asked for."""
    bound = [abs(loss) * APART * depth_error(DEPTH) * (step + 1) for step, loss in enumerate(exact.losses)]
    if os.environ.get("PPE_RECORD") == "1":
        _record(setting, device, found, bound)
    for entry in (entry for entry in recorded() if entry["setting"] == setting):
        who = entry["device"], entry["versions"]
        assert entry["ids"] == found.ids == exact.ids, who
        for step, loss in enumerate(entry["losses"]):
            assert loss == loss_near(exact.losses[step], DEPTH, step + 1), (who, step)
            assert entry["bound"][step] == loss_near(bound[step], DEPTH, step + 1), (who, step)


def _record(setting: str, device: str, found: Trajectory, bound: list[float]) -> None:
    names = ("torch", "transformers", *(["torch_npu"] if device.startswith("npu") else []))
    versions = {name: importlib.metadata.version(name) for name in names}
    entry = {"setting": setting, "device": device, "versions": versions}
    others = [other for other in recorded() if {name: other[name] for name in entry} != entry]
    entry |= {"losses": found.losses, "bound": bound, "ids": found.ids}
    rows = sorted([*others, entry], key=lambda row: (row["setting"], row["device"], sorted(row["versions"].items())))
    RECORDS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
