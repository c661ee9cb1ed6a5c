"""scripts/check_house.py sees a bare tolerance in whatever form it is written."""

import check_house
import pytest


@pytest.mark.parametrize(
    "line",
    [
        "assert loss == pytest.approx(3.0, abs=1e-5)",
        "assert loss == approx(3.0, rel=2 * 1e-6)",
        "torch.testing.assert_close(a, b)",
        "torch.testing.assert_close(a, b, rtol=0, atol=0)",
        "assert np.allclose(a, b)",
        "assert math.isclose(a, b)",
        "assert (a - b).abs().max() < 1e-6",
        "assert 2e-4 * size >= (a - b).abs().max()",
        "TOLERANCE = {torch.float32: 2e-6}",
    ],
)
def test_a_bare_tolerance_is_seen(line):
    assert [number for number, _ in check_house.bare_tolerances(f"import torch\n{line}")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        "assert loss == pytest.approx(3.0)",  # of Python's numbers
        "assert loss == pytest.approx(3.0, abs=sampling_error(0.5, 100))",
        "assert_near(a, b, roundings=3)",
        "assert share == pytest.approx(3.0, abs=1 / 20)",
        "assert 0.4 < retention < 0.55",
        "train(learning_rate=1e-3)",
        "assert found > 0.01 * other",
    ],
)
def test_what_is_none_is_not(line):
    assert check_house.bare_tolerances(line) == []


def test_this_house_has_none():
    assert check_house.tolerances() == []
