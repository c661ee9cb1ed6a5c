"""The training loss without logits, and self-distillation: against what whole logits give."""

import copy

import pytest
import torch
import torch.nn.functional as F
from prompts import MIXED, PRESETS
from support import FAMILIES, Prompt, batch, random_model

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.models.forward_pass import ForwardPass
from ppe_npu.models.fused import fuse
from ppe_npu.models.loss import Distillation, divergence

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
    torch.testing.assert_close(lean.loss, whole.loss, rtol=1e-5, atol=1e-6)
    expected, found = gradients(model, whole.loss), gradients(model, lean.loss)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_the_count_of_a_whole_step_divides_the_loss():
    model = compress(random_model(), PRESETS["ppe"])
    inputs, labels = inputs_and_labels()
    loss = model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True)).loss
    counted = (labels[:, 1:] != -100).sum()
    scaled = model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True), num_items_in_batch=4 * counted).loss
    torch.testing.assert_close(4 * scaled, loss)


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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["ppe", "cascade", "chatunivi"])
def test_distillation_is_the_divergence_from_the_dense_model(name, temperature):
    model = compress(random_model(), PRESETS[name])
    inputs, labels = inputs_and_labels()
    student = model(**inputs, labels=labels)
    teacher_model = compress(copy.deepcopy(model), DENSE)
    with torch.no_grad():
        teacher = teacher_model(**inputs, labels=labels)
    rows = [
        F.log_softmax(out.logits[:, :-1][out.labels[:, 1:] != -100] / temperature, -1) for out in (student, teacher)
    ]
    expected = (rows[1].exp() * (rows[1] - rows[0])).sum() * temperature**2 / len(rows[0])
    half = Distillation(0.5, temperature)
    found = model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True, distill=half)).loss
    torch.testing.assert_close(found, 0.5 * student.loss + 0.5 * expected, rtol=1e-4, atol=1e-6)
    assert expected.item() > 1e-3, "a divergence of nothing would show nothing"
    assert model.compression.config is PRESETS[name]
    # The teacher's share of the gradient is none.
    wanted, got = gradients(model, 0.5 * student.loss + 0.5 * expected), gradients(model, found)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=2e-3, atol=1e-6, msg=key)


def test_a_student_that_sees_all_has_nothing_to_learn_from_its_teacher():
    model = compress(random_model(), CompressionConfig.preset("ppe", k=4, ratio=1.0)).train()
    inputs, labels = inputs_and_labels()
    loss = model(**inputs, labels=labels, ppe=ForwardPass(skip_logits=True, distill=Distillation(1.0))).loss
    assert abs(loss.item()) < 1e-4
    assert model.training


def test_divergence_by_chunks_is_that_of_the_whole():
    torch.manual_seed(0)
    student, teacher, weight = torch.randn(2500, 8), torch.randn(2500, 8), torch.randn(30, 8)
    expected = F.kl_div(
        F.log_softmax(student.double() @ weight.double().t(), -1),
        F.log_softmax(teacher.double() @ weight.double().t(), -1),
        reduction="sum", log_target=True,
    )  # fmt: skip
    assert divergence(student, teacher, weight, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_head_is_what_it_was_after_restore():
    model = random_model()
    before = model.lm_head.forward
    assert "forward" not in vars(restore(compress(model, PRESETS["ppe"])).lm_head)
    assert model.lm_head.forward == before
