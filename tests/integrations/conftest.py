"""Registers the marks of transformers' own tests, which pytest refuses otherwise."""

MARKS = (
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"),
    *("is_training_test", "order"),
)


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")
