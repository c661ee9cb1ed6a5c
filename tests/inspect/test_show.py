"""Pictures of groups: what is tinted, framed and numbered; and `describe --show` from file to file."""

import json

import numpy as np
import pytest
from PIL import Image

from ppe_npu import cli
from ppe_npu.inspect.show import draw_groups, draw_strip, draw_visual, token_at
from ppe_npu.inspect.trace import Groups, Visual

GREY = (128, 128, 128)
# Two steps of 2 x 3 tokens: the left column of both is one token, which keeps two positions, one of each step.
LABELS = np.array([[[0, 1, 2], [0, 3, 4]], [[0, 5, 5], [0, 6, 7]]])
GROUPS = Groups(None, LABELS, np.array([0, 1, 2, 4, 5, 7, 10, 11]), np.array([[9, 0], *([n, n] for n in range(1, 8))]))


def pixel(picture, row, column, cell=60):
    """The colour of a token off its middle, where no dot or number stands."""
    return picture.getpixel((column * cell + cell // 5, row * cell + cell // 5))


def yellow(picture):
    return int((np.asarray(picture) == (255, 221, 0)).all(-1).sum())


def test_merged_tokens_share_a_colour_and_others_have_none():
    picture = Image.new("RGB", (33, 21), GREY)
    first, second = (draw_groups(picture, GROUPS, step, None, side=180) for step in (0, 1))
    assert first.size == (180, 120)
    left = {pixel(part, row, 0) for part in (first, second) for row in (0, 1)}
    assert len(left) == 1
    assert GREY not in left
    assert pixel(second, 0, 1) == pixel(second, 0, 2) != pixel(first, 0, 0)
    assert {pixel(first, row, column) for row in (0, 1) for column in (1, 2)} == {GREY}
    assert first.getpixel((30, 30)) == (255, 255, 255)  # the representative
    assert second.getpixel((30, 30)) != (255, 255, 255)  # not in this step
    assert second.getpixel((60, 50)) == (20, 20, 20)  # between groups
    assert second.getpixel((120, 20)) == pixel(second, 0, 1)  # not within one


def test_what_leans_on_an_anchor_is_joined_to_it():
    picture = Image.new("RGB", (30, 20), GREY)
    leaning = Groups("pixels", LABELS[:1], np.array([0, 1, 2, 4, 5]), np.arange(5)[:, None])
    merged = draw_groups(
        picture, Groups(None, *[getattr(leaning, n) for n in ("labels", "representatives", "held")]), side=180
    )
    joined = draw_groups(picture, leaning, side=180)
    changed = (np.asarray(merged) != np.asarray(joined)).any(-1)
    rows, columns = np.nonzero(changed)
    # The left column alone has a dropped token, below its anchor.
    assert columns.min() > 20
    assert columns.max() < 40
    assert rows.min() >= 20
    assert rows.max() < 100
    assert joined.getpixel((30, 60)) == (20, 20, 20)
    sheet = draw_visual([picture], Visual(0, "image", 0, (leaning,), None, False))
    assert sheet.width > 180


def test_the_chosen_token_is_outlined_and_its_positions_numbered():
    picture = Image.new("RGB", (30, 20), GREY)
    assert yellow(draw_groups(picture, GROUPS, 0, None, side=180)) == 0
    framed = [yellow(draw_groups(picture, GROUPS, step, 0, numbered=False, side=180)) for step in (0, 1)]
    assert framed[0] == framed[1] > 0
    numbered = [yellow(draw_groups(picture, GROUPS, step, 0, side=180)) for step in (0, 1)]
    assert numbered[1] > framed[1]  # of the second step the left bottom one
    assert numbered[0] == framed[0]  # the representative's disc is white
    assert yellow(draw_groups(picture, GROUPS, 1, 1, side=180)) == 0  # a token of the other step


def test_a_video_has_one_panel_a_step_and_an_image_one_a_stage():
    frames = [Image.new("RGB", (30, 20), GREY)] * 2
    video = Visual(0, "video", 0, (GROUPS,), np.array([0, 0]), False)
    both = draw_visual(frames, video)
    assert yellow(both) == yellow(draw_visual(frames, video, 0))  # the largest, if none is named
    one = Groups(2, LABELS[:1], np.array([0, 1, 2, 4, 5]), np.arange(5)[:, None])
    stages = draw_visual(frames[:1], Visual(0, "image", 0, (one, one), None, False))
    alone = draw_visual(frames[:1], Visual(0, "image", 0, (one,), None, True))
    assert stages.width > alone.width > 0
    with pytest.raises(ValueError, match="1 picture\\(s\\) for 2"):
        draw_visual(frames[:1], video)
    for token in (-1, 8):
        with pytest.raises(ValueError, match="8 are left"):
            draw_visual(frames, video, token)


@pytest.fixture
def describe(capfd, tiny_folder):
    def describe(*arguments):
        """(exit code, stdout, stderr) of `ppe-npu describe` on the tiny model."""
        asked = ["describe", "--model", tiny_folder, "--device", "cpu", "--max-new-tokens", "1", *map(str, arguments)]
        code = cli.main(asked)
        out, err = capfd.readouterr()
        return code, out, err

    return describe


@pytest.mark.ci
def test_describe_shows_images_and_videos_in_one_picture(describe, write_image, write_clip, tmp_path):
    shown = tmp_path / "new" / "groups.png"
    asked = ["--image", write_image("a.png"), "--video", write_clip("v.mp4"), "--nframes", 4, "--show", shown]
    config = {"ratio": 0.3, "k": 4, "temporal_ratio": 0.5}
    (tmp_path / "events.json").write_text(json.dumps(config))
    code, out, err = describe(*asked, "--compression", tmp_path / "events.json")
    assert (code, err) == (0, "")
    assert str(shown) in out
    with Image.open(shown) as picture:
        assert picture.format == "PNG"
        assert yellow(picture.convert("RGB")) > 1000
        first = np.asarray(picture.convert("RGB")).copy()
    code, _, err = describe(*asked, "--compression", tmp_path / "events.json", "--token", 3)
    assert (code, err) == (0, "")
    with Image.open(shown) as picture:
        again = np.asarray(picture.convert("RGB"))
    assert again.shape != first.shape or (again != first).any()
    assert [path.name for path in shown.parent.iterdir()] == ["groups.png"]  # no half-written file beside it


def test_steps_that_leave_every_image_alone_have_nothing_to_show(describe, write_image, tmp_path):
    (tmp_path / "events.json").write_text(json.dumps({"steps": [{"method": "events", "layer": 1}], "k": 1}))
    asked = ["--image", write_image("a.png"), "--show", tmp_path / "groups.png"]
    code, _, err = describe(*asked, "--compression", tmp_path / "events.json")
    assert code != 0
    assert "--show has nothing to draw: every step left all tokens alone; leave out --show" in err
    assert not (tmp_path / "groups.png").exists()


@pytest.mark.parametrize("name", ["jpg", "webp"])
def test_describe_shows_a_cascade_of_a_control(describe, write_image, tmp_path, name):
    (tmp_path / "cascade.json").write_text(
        json.dumps({"method": "avg_pool", "positions": "renumber", "k": 1, "layers": [1]})
    )
    asked = ["--compression", tmp_path / "cascade.json", "--image", write_image("a.png")]
    code, _, err = describe(*asked, "--show", tmp_path / f"groups.{name}")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / f"groups.{name}") as picture:
        assert picture.format == {"jpg": "JPEG", "webp": "WEBP"}[name]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (["--show", "groups.txt"], "name a file that ends in .png"),
        (["--token", 3], "add --show"),
        (["--show", "a.png", "--compression", "dense"], "nothing to draw"),
        (["--show", "a.png", "--compression", "{ratios}"], "give one ratio"),
        (["--show", "a.png", "--compression", "keep_one", "--token", 17], "17 tokens are kept, 0 to 16"),
        (["--show", "a.png", "--compression", "keep_one", "--token", -1], "--token -1 does not exist"),
        (["--show", "{folder}.png"], "is a folder"),
    ],
)
def test_what_cannot_be_shown_is_said_before_the_weights_are_read(
    describe, write_image, tmp_path, monkeypatch, asked, word
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "ratios.json").write_text(json.dumps({"ratio": [0.5, 0.5], "k": 4}))
    monkeypatch.setattr("ppe_npu.cli.describe.load_model", lambda *_: pytest.fail("the weights were read"))
    given = [str(part).format(folder=tmp_path / "folder", ratios=tmp_path / "ratios.json") for part in asked]
    code, _, err = describe("--image", write_image("b.png"), *given)
    assert code == 2
    assert word in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(("steps", "columns"), [(1, None), (3, None), (3, 2), (4, 2)])
def test_each_token_of_a_strip_is_found_where_it_is_drawn(steps, columns):
    """Tokens are 50 pixels wide; each has a colour of its own, which tells where in the strip it is."""
    shape = (steps, 2, 3)
    own = np.arange(steps * 6)
    groups = Groups(None, own.reshape(shape), own, own[:, None])
    frames = [Image.fromarray(np.uint8(40 * step + 6 * np.arange(6).reshape(2, 3) + 5)) for step in range(steps)]
    frames = [frame.resize((150, 100), Image.Resampling.NEAREST) for frame in frames]
    strip = np.asarray(draw_strip(frames, groups, 150, columns=columns))[..., 0]
    found = set()
    for y in range(25, len(strip), 25):
        for x in range(25, strip.shape[1], 25):
            token = token_at((x, y), shape, 150, columns)
            if token is not None and strip[y - 3 : y + 4, x - 3 : x + 4].std() == 0:  # inside of a token
                assert strip[y, x] == 40 * (token // 6) + 6 * (token % 6) + 5
                found.add(token)
    assert found == set(range(steps * 6))
    assert token_at((151, 10), shape, 150, columns) is None  # between two frames, or beside the only one
    assert token_at((10, 10 + 103 * steps), shape, 150, columns) is None
