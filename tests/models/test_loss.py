"""The training loss without logits, and self-distillation, against results from whole logits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from prompts import MIXED, PRESETS, logits
from support import FAMILIES, Prompt, batch, random_model
from tolerances import assert_rounds_alike, divergence_error, eps, exact, loss_near, near

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.models.forward_pass import ForwardPass
from ppe_npu.models.fused import fuse
from ppe_npu.models.loss import Distillation, divergence

pytestmark = pytest.mark.half

DENSE = CompressionConfig.preset("dense")


def inputs_and_labels(prompts=MIXED):
    inputs = batch(*prompts, side="right")
    return inputs, torch.where(inputs["attention_mask"].bool() & (inputs["input_ids"] < 90), inputs["input_ids"], -100)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_logits_loss_and_gradients_are_the_same(family, packed):
    model = compress(fuse(random_model(family=family)), PRESETS["cascade"])
    inputs, labels = inputs_and_labels([MIXED[1], MIXED[2]])
    whole = model(**inputs, labels=labels)
    lean = model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True, packed=packed))
    assert lean.logits is None
    assert lean.loss.item() == loss_near(whole.loss.item())
    expected, found = gradients(model, whole.loss), gradients(model, lean.loss)
    assert_rounds_alike(found, expected, exact(model, lambda: gradients(model, model(**inputs, labels=labels).loss)))


def test_the_count_of_a_whole_step_divides_the_loss():
    model = compress(random_model(), PRESETS["ppe"])
    inputs, labels = inputs_and_labels()
    loss = model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True)).loss
    counted = (labels[:, 1:] != -100).sum()
    scaled = model(**inputs, labels=labels, skip_logits=True, num_items_in_batch=4 * counted).loss
    assert (4 * scaled).item() == near(loss.item(), roundings=2, dtype=loss.dtype)  # one division each


def test_a_batch_without_labels_costs_nothing_and_reaches_every_parameter():
    model = compress(random_model(), PRESETS["ppe"]).train()
    inputs, labels = inputs_and_labels([Prompt([4], seed=1)])
    loss = model(
        **inputs, labels=torch.full_like(labels, -100), ppe=ForwardPass(skip_logits=True), num_items_in_batch=7
    ).loss
    found = gradients(model, loss)
    assert loss.item() == 0
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all((value == 0).all() for value in found.values())


def apart(model, student, inputs, labels, temperature):
    """The divergence of a compressed model's answers from the dense model's, computed from whole logits."""
    with torch.no_grad():
        teacher = compress(copy.deepcopy(model), DENSE)(**inputs, labels=labels)
    rows = [
        F.log_softmax(out.logits[:, :-1][out.labels[:, 1:] != -100] / temperature, -1) for out in (student, teacher)
    ]
    return (rows[1].exp() * (rows[1] - rows[0])).sum() * temperature**2 / len(rows[0])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["ppe", "cascade", "chatunivi"])
def test_distillation_is_the_divergence_from_the_dense_model(name, temperature):
    model = compress(random_model(), PRESETS[name])
    inputs, labels = inputs_and_labels()
    student = model(**inputs, labels=labels)
    expected = apart(model, student, inputs, labels, temperature)
    half = Distillation(0.5, temperature)
    found = model(**inputs, labels=labels, skip_logits=True, distill=half).loss
    off = divergence_error(student.logits)
    assert abs(found.item() - (0.5 * student.loss + 0.5 * expected).item()) <= off
    assert expected.item() > 100 * off, "a divergence of nothing would show nothing"
    assert model.compression.config is PRESETS[name]
    # No gradient flows through the teacher.
    wanted, got = gradients(model, 0.5 * student.loss + 0.5 * expected), gradients(model, found)

    def by_hand():
        student = model(**inputs, labels=labels)
        return gradients(model, 0.5 * student.loss + 0.5 * apart(model, student, inputs, labels, temperature))

    assert_rounds_alike(got, wanted, exact(model, by_hand))


@torch.no_grad()
def test_a_teacher_of_its_own_weights_says_what_its_copy_said():
    """Although the student's head and layers have changed since the copy was made."""
    model, (inputs, labels) = compress(random_model(), PRESETS["ppe"]), inputs_and_labels()
    teacher = copy.deepcopy(model)
    for weight in model.parameters():
        weight.mul_(1.1)
    student = model(**inputs, labels=labels)
    expected = apart(teacher, student, inputs, labels, 2.0)
    found, present = (
        model(**inputs, labels=labels, skip_logits=True, distill=Distillation(1.0, 2.0, who)).loss
        for who in (teacher, None)
    )
    off = divergence_error(student.logits)
    assert abs(found - expected) <= off
    assert abs(present - expected) > 100 * off


@torch.no_grad()
def test_a_head_of_a_class_made_from_linear_computes_its_losses_itself():
    model, (inputs, labels) = compress(random_model(), PRESETS["ppe"]), inputs_and_labels()
    given = {"labels": labels, "skip_logits": True, "distill": Distillation(0.5)}
    expected = model(**inputs, **given).loss
    restore(model)
    model.lm_head.__class__ = type("FSDPLinear", (torch.nn.Linear,), {})  # as fully_shard does
    compress(model, PRESETS["ppe"])
    assert torch.equal(model(**inputs, **given).loss, expected)


def test_a_student_that_sees_all_has_nothing_to_learn_from_its_teacher():
    model = compress(random_model(), CompressionConfig.preset("ppe", k=4, ratio=1.0)).train()
    inputs, labels = inputs_and_labels()
    loss = model(**inputs, labels=labels, skip_logits=True, distill=Distillation(1.0)).loss
    assert abs(loss.item()) <= divergence_error(logits(model, inputs))
    assert model.training


def test_divergence_by_chunks_is_that_of_the_whole():
    torch.manual_seed(0)
    student, teacher, weight = torch.randn(2500, 8), torch.randn(2500, 8), torch.randn(30, 8)
    expected = F.kl_div(
        F.log_softmax(student.double() @ weight.double().t(), -1),
        F.log_softmax(teacher.double() @ weight.double().t(), -1),
        reduction="sum", log_target=True,
    )  # fmt: skip
    found = divergence(student, teacher, weight, 1.0).item()
    # A logit sums 8 products; a term is p times the difference of two logs, and 2,500 x 30 of them are summed.
    largest = 8 * max(student.abs().max(), teacher.abs().max()).item() * weight.abs().max().item()
    assert abs(found - expected.item()) <= eps(student) * (2 * (8 + 4) * largest * 2500 + 2500 * 30 * expected.item())


def test_the_head_is_what_it_was_after_restore():
    model = random_model()
    before, (inputs, labels) = model.lm_head.forward, inputs_and_labels()
    compress(model, PRESETS["ppe"])(**inputs, labels=labels, skip_logits=True)
    assert model.lm_head.forward != before
    assert "forward" not in vars(restore(model).lm_head)
    assert model.lm_head.forward == before
