"""Runs the command line in this process, for the tests of several commands."""

import pytest

from ppe_npu import cli


@pytest.fixture
def run(capfd):
    """run(*arguments) -> (exit code, stdout, stderr), in this process."""

    def run(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


def refused(result, *words):
    """Check the result of a user's mistake: exit code 2 and one line of error that contains the words."""
    code, out, err = result
    assert code == 2, (out, err)
    assert err.startswith("ppe-npu: error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert str(word) in err
