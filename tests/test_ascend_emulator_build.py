"""The build of the Ascend emulator: what it reads from the wheel, and its messages where it cannot be built. No NPU."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ascend_emulator import build, environment, symbols


def test_a_missing_torch_npu_is_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_npu" else find(name))
    assert build.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ascend_emulator: torch_npu is not installed in ")
    assert "make EMULATE=1" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("torch", "npu", "fits"),
    [("2.13.0+cpu", "2.13.0", True), ("2.10.0", "2.10.0.post4", True), ("2.14.1", "2.14.0", True),
     ("2.13.0", "2.1.3", False), ("2.7.1", "2.10.0", False)],
)  # fmt: skip
def test_torch_and_torch_npu_are_of_one_release(monkeypatch, torch, npu, fits):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=f"/{name}/__init__.py"))
    monkeypatch.setattr(importlib.metadata, "version", {"torch": torch, "torch_npu": npu}.get)
    if fits:
        assert build.Wheels.find().versions == f"torch-{torch}-npu-{npu}"
    else:
        with pytest.raises(build.BuildError, match="do not belong together"):
            build.Wheels.find()


@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("nm"), reason="needs gcc and nm")
def test_stubs_are_made_of_what_the_libraries_say(tmp_path):
    """A library that needs three functions: one is written, one may simply succeed, one has to refuse."""
    declared = "int aclWritten(void); int aclSucceeds(void); int aclRefuses(void); int printf();\n"
    used = "int all(void) { return printf() + aclWritten() + aclSucceeds() + aclRefuses(); }\n"
    (tmp_path / "npu.c").write_text(declared + used)
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "npu.c", "-o", "npu.so"], cwd=tmp_path, check=True)
    wanted = symbols.wanted([tmp_path / "npu.so"], [])
    assert wanted == {"aclWritten", "aclSucceeds", "aclRefuses"}
    (tmp_path / "runtime.c").write_text("int aclWritten(void) { return 0; }\n")
    (tmp_path / "optional.txt").write_text("# a comment\naclSucceeds  # another\n")
    text = symbols.runtime_stubs(wanted, [tmp_path / "runtime.c"], tmp_path / "optional.txt")
    assert "long aclSucceeds(void) { return 0; }" in text
    assert 'int aclRefuses(void) { return emulator_refuse("aclRefuses"); }' in text
    assert "aclWritten" not in text


def test_operators_are_named_by_the_wheel_and_refuse(tmp_path):
    (tmp_path / "npu.so").write_bytes(
        b"\0aclnnCast\0aclnnCastGetWorkspaceSize\0aclnnNewOne\0aclnnNewOneGetWorkspaceSize\0x"
    )
    names = symbols.operator_names(tmp_path / "npu.so")
    assert names == ["aclnnCast", "aclnnCastGetWorkspaceSize", "aclnnNewOne", "aclnnNewOneGetWorkspaceSize"]
    text = symbols.operator_stubs(names, build.STUBS / "opapi.c")
    assert 'int aclnnNewOneGetWorkspaceSize(void) { return emulator_refuse("aclnnNewOne"); }' in text
    assert text.count("aclnnCast") == 1  # computed: COMPUTED(aclnnCast)


def test_paths_that_are_set_stay_behind_the_emulators(monkeypatch, tmp_path):
    """Except for those of other builds, which a long-lived shell may still have set."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "old" / "python"), "/elsewhere"]))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    variables = environment.variables(tmp_path / "new")
    assert variables["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "new" / "python"), "/elsewhere"])
    assert variables["LD_LIBRARY_PATH"] == str(tmp_path / "new" / "lib")
    assert variables[environment.FOLDER] == str(tmp_path / "new")


def test_of_two_builds_at_once_one_stays(tmp_path):
    for name in "ab":
        (tmp_path / name / "ready").mkdir(parents=True)
        (tmp_path / name / "ready" / "by").write_text(name)
        build._publish(tmp_path / name, tmp_path / "folder")
    assert (tmp_path / "folder" / "by").read_text() == "a"


@pytest.mark.parametrize(("form", "line"), [("--env", "export A='b $c'\n"), ("--make", "export A := b $$c\n")])
def test_variables_for_a_shell_and_for_make(monkeypatch, capsys, form, line):
    monkeypatch.setattr(build, "build", lambda root: root)
    monkeypatch.setattr(environment, "variables", lambda folder: {"A": "b $c"})
    assert build.main([form]) == 0
    assert capsys.readouterr().out == line


def test_importing_the_package_imports_neither_torch_nor_torch_npu():
    code = "import sys, ascend_emulator.build; print(sorted({'torch', 'torch_npu'} & set(sys.modules)))"
    tests = str(build.HERE.parent)
    environ = {name: value for name, value in os.environ.items() if name not in (environment.FOLDER, "PYTHONPATH")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, cwd=tests)
    assert done.stdout.strip() == "[]", done.stderr
