"""What scripts/check_house.py detects, however it is written, and what it accepts."""

import check_house
import draw_architecture
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
        "assert loss == pytest.approx(3.0, 1e-5)",
        "assert (a - b).abs().max() < 2**-11",
        "assert (a - b).abs().max() < 10.0**-5 * size",
        "assert error < (2e-6 if dtype == 'fp32' else 0.02)",
        "assert not (a - b).abs().max() > 1e-6",
        "assert (a - b).abs().lt(1e-6).all()",
        "LIMIT = 5e-4; assert error <= LIMIT",
        "limit = 1e-5; assert loss == pytest.approx(3.0, abs=2 * limit)",
    ],
)
def test_a_bare_tolerance_is_seen(line):
    assert [number for number, _ in check_house.bare_tolerances(f"import torch\n{line}")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        "assert loss == pytest.approx(3.0)",  # compares Python's numbers
        "assert loss == pytest.approx(3.0, abs=sampling_error(0.5, 100))",
        "assert_near(a, b, roundings=3)",
        "assert share == pytest.approx(3.0, abs=1 / 20)",
        "assert 0.4 < retention < 0.55",
        "train(learning_rate=1e-3)",
        "assert found > 0.01 * other",
        "if abs(best - least) > 1e-9: pass",
        "assert error <= 500 * eps(torch.bfloat16) ** 2",
    ],
)
def test_what_is_none_is_not(line):
    assert check_house.bare_tolerances(line) == []


@pytest.mark.slow
def test_this_house_has_none():
    assert check_house.tolerances() == []


@pytest.mark.parametrize(
    "line",
    [
        "fused = device.type == 'cuda'",
        "if 'npu' != tensor.device.type: pass",
        "slow = kind in ('cuda', 'cpu')",
        "if tensor.is_cuda: pass",
        "if tensor.is_cpu and there: pass",
        "found = str(device).startswith('npu')",
        "match device.type:\n    case 'npu': pass",
        "size = {'npu': 1, 'cpu': 2}[kind]",
        "size = SIZES[device.type]",
        "size = {'npu': 1}.get(kind, 2)",
        "size = sizes.get(tensor.device.type)",
        "if device.type in KINDS: pass",
        "if where.type == KIND: pass",
        "found = device.type.startswith('np')",
        "found = re.match('npu', name)",
        "if 'cuda:0' == str(device): pass",
        "if torch.cuda.is_available(): pass",
        "event = torch.cuda.Event()",
        "if hasattr(torch, 'npu'): pass",
        "runtime = getattr(torch, 'npu', None)",
    ],
)
def test_a_question_of_devices_is_seen(line):
    assert check_house.device_questions(line)


@pytest.mark.parametrize(
    "line",
    [
        "model.to('cuda')",
        "def load(device='cpu'): pass",
        "alike = one.device.type == other.device.type",
        "size = sizes[part.type]",
        "size = sizes.get(kind)",
        "jobs(output, device.type)",
        "torch.autocast(device.type)",
        "if torch.distributed.is_available(): pass",
        "if hasattr(torch.backends, 'cudnn'): pass",
        "names = {'npu': 'Ascend', 'cpu': 'host'}",
        "Implementation('rotary', ('npu',))",
        "if part.type == 'image': pass",
        "name.startswith('cudnn')",
        "if devices.on_cpu(device): pass",
    ],
)
def test_what_asks_no_device_is_not(line):
    assert check_house.device_questions(line) == []


def test_a_question_outside_of_device_py_is_named_with_its_place(tmp_path, monkeypatch):
    for name in ("backends/device.py", "backends/sdpa.py", "ppe_npu/demo/tiny.py", "tests/test_tiny.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("import torch\n\nfast = torch.empty(0).device.type == 'npu'\n")
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    places = [line.split()[0] for line in check_house.of_every_file()]
    assert places == ["backends/sdpa.py:3", "ppe_npu/demo/tiny.py:3"]


def test_long_files_and_functions_are_named_wherever_they_stand(tmp_path, monkeypatch):
    long = "def walk():\n" + "    pass\n" * check_house.LONGEST_FUNCTION
    for folder in check_house.FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "long.py").write_text("\n" * check_house.LONGEST + "pass\n")
        (tmp_path / folder / "walk.py").write_text(long)
        (tmp_path / folder / "fits.py").write_text(long.replace("    pass\n", "", 1) + "\n" * 200)
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    places = {line.split()[0] for line in check_house.of_every_file()}
    assert places == {f"{folder}/{file}" for folder in check_house.FOLDERS for file in ("long.py", "walk.py:1")}


def test_a_module_without_a_room_is_named(tmp_path, monkeypatch):
    (tmp_path / "ppe_npu").mkdir()
    for name in ("__init__", "errors", "bits"):
        (tmp_path / "ppe_npu" / f"{name}.py").write_text("")
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    assert [line.split()[0] for line in check_house.of_the_package()] == ["ppe_npu/bits.py"]


def test_a_circle_of_imports_is_seen_although_one_is_inside_a_function(tmp_path, monkeypatch):
    files = {
        "ppe_npu/__init__.py": "",
        "ppe_npu/demo/__init__.py": "",
        "ppe_npu/demo/one.py": "from ppe_npu.demo import two\n",
        "ppe_npu/demo/two.py": "def run():\n    from ppe_npu.demo.three import go\n",
        "ppe_npu/demo/three.py": "if TYPE_CHECKING:\n    from ppe_npu.demo.one import Job\n",
        "backends/__init__.py": "",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    assert check_house.circles() == []  # type checkers alone follow the import under TYPE_CHECKING
    (tmp_path / "ppe_npu/demo/three.py").write_text("def go():\n    from . import one\n")
    (message,) = check_house.circles()
    assert all(f"ppe_npu.demo.{name}" in message for name in ("one", "two", "three"))
    assert "ppe_npu.demo.one imports ppe_npu.demo.two" in message


def test_every_room_is_in_the_picture_and_in_the_text():
    folder = check_house.ROOT / "ppe_npu"
    rooms = [path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    rooms = [name for name in rooms if name not in ("__init__", "old_names")]
    assert len(rooms) > 15
    assert not [name for name in rooms if draw_architecture.room(f"ppe_npu.{name}") is None]
    text = (check_house.ROOT / "docs" / "architecture.md").read_text().split("![who imports whom]")[0]
    assert not [name for name in rooms if f"{name}/" not in text and f"{name}.py" not in text]
