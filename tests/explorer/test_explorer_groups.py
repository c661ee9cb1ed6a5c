"""What the explorer computes and what it says of it, without a browser and without Gradio."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
import torch
from command_line import refused
from PIL import Image

from ppe_npu.compat import set_pixels
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.demo import tiny
from ppe_npu.errors import InputError
from ppe_npu.evaluation.generation import Generated, generate
from ppe_npu.explorer import sources, words
from ppe_npu.explorer.groups import LEFT_BEHIND, Explorer, found_model
from ppe_npu.explorer.session import Session
from ppe_npu.explorer.state import YOURS, Settings
from ppe_npu.models import compress


@pytest.fixture(scope="module")
def explorer():
    processor = tiny.build_processor()
    set_pixels(processor.image_processor, 2304, 19200)
    sampling = VideoSampling(nframes=8, min_pixels=2304, max_pixels=19200)
    return Explorer(tiny.build_model(seed=0).eval(), processor, sampling, answers=True, max_new_tokens=6)


def look(explorer, **values):
    session = Session()
    session.update(explorer, Settings(**values))
    return session


@pytest.mark.parametrize("name", sources.names())
def test_every_source_of_ours_is_seen_in_whole_tokens(explorer, name):
    """Each source is as large as a whole number of tokens, in a model of any patch size."""
    session = look(explorer, source=name, budget=0.5)
    steps, height, width = session.looks["dense"].groups.labels.shape
    assert len(session.source.frames) == steps
    assert session.source.frames[0].size == (width * explorer.unit, height * explorer.unit)
    assert sources.ours(name, 28).frames[0].size == (width * 28, height * 28)
    assert len(session.looks["left"].groups.representatives) == steps * -(-height * width // 2)
    assert session.picture("left").size == session.picture("dense").size


def test_a_look_is_what_the_model_itself_does(explorer):
    session = look(explorer, left="dpc_knn", budget=0.25)
    model = compress(tiny.build_model(seed=0).eval(), CompressionConfig.from_dict(session.configs["left"].to_dict()))
    model.compression.keep_groups = True
    model(**session.prompt())
    groups = model.compression.trace.visuals()[0].stages[-1]
    found = session.looks["left"]
    for name in ("labels", "representatives", "held"):
        assert np.array_equal(getattr(groups, name), getattr(found.groups, name))
    report = model.compression.report
    assert (found.costs["after"], found.costs["kv"]) == (report.tokens_after, report.kv_bytes)
    assert found.costs["prompt"] == report.prompt_tokens_after
    dense = session.looks["dense"].costs
    assert dense["before"] == dense["after"] == 300
    assert found.costs["tower_flops"] == dense["tower_flops"]
    assert found.costs["decoder_flops"] < dense["decoder_flops"] / 2


@pytest.mark.ci
def test_counting_leaves_a_step_inside_the_tower_at_work(explorer):
    """The counter hooks into the place where the step runs."""
    session = look(explorer, left="ipcv")
    config = session.configs["left"]
    first = explorer.look(session.prompt(), config).costs
    model = compress(explorer.model, config, explorer.processor)
    from ppe_npu.evaluation.cost_pass import prefill_flops

    assert prefill_flops(model, session.prompt()) == prefill_flops(model, session.prompt())
    assert model.compression.report.in_tower is not None
    assert first["tower_flops"] == prefill_flops(model, session.prompt())["tower"]


@pytest.mark.ci
def test_every_token_is_told_of(explorer):
    """The words about groups, members and lenders agree with the arrays."""
    session = look(explorer, source="scene 3", budget=0.25)
    found = session.looks["left"]
    for place in range(36):
        said = words.told(found, place)
        token = found.groups.labels.reshape(-1)[place]
        assert said.startswith(f"The token at ({place // 6}, {place % 6}) ")
        assert f"number {token} of 9" in said
        members = found.groups.sizes[token]
        assert ("stayed by itself" in said) == (members == 1)
        assert members == 1 or f"stands for {members} tokens" in said
        held = dict.fromkeys(found.groups.held[token].tolist())
        assert len(held) == 1 or all(f"({at // 6}, {at % 6})" in said.rpartition("keeps")[2] for at in held)
    dropped = look(explorer, left="chatunivi").looks["left"]
    assert "keeps no position" in words.told(dropped, 0)


def test_a_dropped_token_is_said_to_be_dropped_and_drawn_dark(explorer):
    session = look(explorer, left="pact", positions="keep_one", source="scene 3")
    labels = session.looks["left"].groups.labels
    gone = int(np.flatnonzero(labels.reshape(-1) < 0)[0])
    session.update(explorer, Settings(left="pact", positions="keep_one", source="scene 3", place=gone))
    assert words.told(session.looks["left"], gone) == f"The token at ({gone // 6}, {gone % 6}) was dropped."
    assert f"{int((labels < 0).sum())} dropped" in words.alternative("left", session.looks["left"])
    pixels = np.asarray(session.picture("left")), np.asarray(session.picture("dense"))
    cell = session.picture("left").width // 6
    inside = np.s_[gone // 6 * cell + 9 : (gone // 6 + 1) * cell - 9, gone % 6 * cell + 9 : (gone % 6 + 1) * cell - 9]
    assert pixels[0][inside].mean() < pixels[1][inside].mean() / 3


@pytest.mark.ci
def test_the_answer_comes_in_pieces_and_is_the_models_own(explorer):
    session = look(explorer, budget=0.5)
    pieces = list(explorer.ask(session.prompt(), session.configs["left"]))
    model = compress(explorer.model, session.configs["left"])
    answer = generate(model, explorer.processor, session.prompt(), 6).answers[0]
    assert isinstance(pieces[-1], Generated)
    assert len(pieces) > 2
    assert "".join(pieces[:-1]) == answer == pieces[-1].answers[0]
    session.done["left"] = pieces[-1]
    shown = words.table([("dense", session.looks["dense"], None), ("left", session.looks["left"], pieces[-1])])
    assert "ask to measure it" in shown
    assert f"{1e3 * pieces[-1].prefill_seconds:.1f} ms" in shown


@pytest.mark.ci
def test_who_stops_listening_lets_others_in(explorer):
    session = look(explorer)
    explorer.max_new_tokens = 200
    try:
        answer = explorer.ask(session.prompt(), session.configs["dense"])
        next(answer)
        answer.close()
        assert look(explorer, source="scene 7").looks  # waits for the lock, for one more piece at most
    finally:
        explorer.max_new_tokens = 6


def test_a_fault_of_the_model_is_raised_where_the_answer_is_read(explorer, monkeypatch):
    session = look(explorer)

    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("ppe_npu.explorer.groups.generate", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        list(explorer.ask(session.prompt(), session.configs["dense"]))
    monkeypatch.undo()
    assert list(explorer.ask(session.prompt(), session.configs["dense"]))


@pytest.mark.ci
def test_two_users_at_once_do_not_mix(explorer):
    """Three threads with settings of their own get what each gets alone."""
    asked = [
        Settings(budget=share, left=left, source=source)
        for share, left, source in ((0.1, "ppe", "house"), (0.5, "fastv", "scene 3"), (0.3, "ipcv", "scene 7"))
    ]
    alone = [_seen(explorer, settings) for settings in asked]
    together = [None] * len(asked)

    def work(number):
        together[number] = _seen(explorer, asked[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def _seen(explorer, settings):
    session = Session()
    session.update(explorer, settings)
    found = session.looks["left"]
    answer = "".join(piece for piece in explorer.ask(session.prompt(), session.configs["left"]) if type(piece) is str)
    return found.groups.labels.tolist(), found.groups.held.tolist(), found.costs, answer


@pytest.mark.ci
def test_settings_that_cannot_be_leave_what_is_shown(explorer):
    session = look(explorer, budget=0.5, source="scene 3")
    before = vars(session).copy()
    for settings, words_ in ((Settings(left="nothing"), "nothing"), (Settings(source="attic"), "attic"),
                             (Settings(source=YOURS), "upload"), (Settings(left="ppe:k=40"), "k=40"),
                             (Settings(source="video", left="ppe:layers=[9]"), "layers")):  # fmt: skip
        with pytest.raises(InputError, match=words_):
            session.update(explorer, settings)
        assert vars(session) == before
    session.update(explorer, Settings(budget=0.25, source="scene 3"))
    assert session.looks["left"].costs["after"] == 9


@pytest.mark.ci
def test_an_answer_stays_as_long_as_its_column_does(explorer):
    session = look(explorer, source="scene 3", right="dpc_knn")
    session.done = {name: object() for name in session.looks}
    session.update(explorer, Settings(source="scene 3", right="tome"))
    assert set(session.done) == {"dense", "left"}
    session.update(explorer, Settings(source="scene 3", right="tome", question="row red"))
    assert not session.done


@pytest.mark.ci
def test_files_of_users_go_through_the_checked_readers(explorer, tmp_path, write_clip, monkeypatch):
    picture = tmp_path / "a.jpg"
    Image.radial_gradient("L").convert("RGB").save(picture)
    session = Session()
    session.upload(explorer, str(picture))
    session.update(explorer, Settings(source=YOURS))
    assert session.looks["dense"].costs["before"] <= 300
    session.upload(explorer, write_clip("c.mp4"))
    session.update(explorer, Settings(source=YOURS))
    assert (session.source.kind, len(session.source.frames)) == ("video", 4)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "c.webm").write_bytes(b"no video")
    (tmp_path / "d.txt").write_text("words")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "e.png")
    for name, said in (("b.png", "b.png"), ("c.webm", "c.webm"), ("d.txt", "not a picture"), ("e.png", "megapixels")):
        with pytest.raises(InputError, match=said) as caught:
            session.upload(explorer, str(tmp_path / name))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)  # users must not see the server's folders
    assert session.source.kind == "video"


def test_names_of_users_are_no_markup(explorer):
    session = look(explorer)
    evil = "<img src=x onerror=alert(1)>"
    assert "<img" not in words.table([(evil, session.looks["left"], None)])


def test_the_model_that_the_demo_left_is_found(tmp_path):
    assert found_model(tmp_path) is None
    for name in reversed(LEFT_BEHIND):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        assert found_model(tmp_path) == tmp_path / name


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), "alloc_cpu"])
@pytest.mark.ci
def test_where_memory_ends_it_says_so_and_goes_on(explorer, error, monkeypatch):
    if error == "alloc_cpu":
        error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    class Computed:
        """What was computed before memory ended."""

    held = []

    def full(*_, **__):
        computed = Computed()
        held.append(weakref.ref(computed))
        raise type(error)(*error.args)

    def release(_):
        assert held[-1]() is None

    session = look(explorer, left="dpc_knn")
    shown, before = session.settings, session.looks["dense"]
    with monkeypatch.context() as patch:
        patch.setattr("ppe_npu.explorer.groups.prefill_flops", full)
        patch.setattr("ppe_npu.explorer.groups.generate", full)
        patch.setattr("ppe_npu.explorer.groups.devices.release_memory", release)
        with pytest.raises(InputError, match="does not fit into memory: choose a smaller picture"):
            session.update(explorer, Settings(left="divprune"))
        with pytest.raises(InputError, match="does not fit into memory"):
            list(explorer.ask(session.prompt(), CompressionConfig.preset("dense")))
        patch.setattr("ppe_npu.explorer.groups.prefill_flops", lambda *_: {}["a fault of ours"])
        with pytest.raises(KeyError):
            session.update(explorer, Settings(left="divprune"))
    assert (session.settings, session.looks["dense"]) == (shown, before)
    session.update(explorer, Settings(left="divprune"))
    assert isinstance(list(explorer.ask(session.prompt(), session.configs["left"]))[-1], Generated)


@pytest.mark.parametrize("flag", ["--nframes", "--fps", "--min-pixels", "--max-pixels"])
def test_a_zero_is_not_taken_for_the_default(run, monkeypatch, tiny_folder, flag):
    monkeypatch.setattr("ppe_npu.cli.explore.optional", lambda *_: None)
    refused(run("explore", "--model", tiny_folder, "--device", "cpu", flag, 0), flag[2:].replace("-", "_"), "0")
