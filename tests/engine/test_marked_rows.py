"""Every gather along a prompt's way fetches the right rows: all tokens, positions and patches carry their own number.

Also runs on the emulated Ascend device (make test-npu).
"""

import numpy as np
import pytest
import torch
from devices import DEVICES
from prompts import MIXED
from support import IMAGE_ID, VIDEO_ID, batch
from tolerances import OPERATORS, assert_equal, assert_near

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.joining import Joined
from ppe_npu.engine.pixels import Chosen
from ppe_npu.engine.positions import HALVES, NEIGHBOURS, contiguous_channels, interleaved_channels
from ppe_npu.engine.rotary import channel_rows, rotary_table
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.methods.leaving import Leaving
from ppe_npu.models.pixels import KeptPatches

VISION = VisionTokens(IMAGE_ID, VIDEO_ID, 2, 2)
CHANNELS = contiguous_channels([8, 12, 12])
NOISE = 16  # channels of noise next to the marks: methods group the tokens by them
AXIS = 10**6  # offset per axis, so that a position reveals its axis

pytestmark = pytest.mark.parametrize("device", DEVICES)
CONFIGS = {
    "ppe": CompressionConfig.preset("ppe", k=4),
    "ppe at a layer": CompressionConfig.preset("ppe", k=2, layers=[1]),
    "two merges": CompressionConfig.preset("ppe", k=4, layers=[1], before_llm=True, ratio=0.6),
    "events": CompressionConfig.preset("ppe", k=4, temporal_ratio=0.5),
    "lent positions": CompressionConfig.preset("divprune", k=4, ratio=0.4, positions="ppe"),
    "places alone": CompressionConfig.preset("uniform", ratio=0.3, positions="keep_one"),
}
ALONE = ("lent positions", "places alone")  # configurations in which every token is a single column


class Marked:
    """A batch in which every column carries its number: as a unit vector in its features, and in its positions."""

    def __init__(self, config: CompressionConfig, device: str):
        self.inputs = batch(*MIXED)
        self.ids = self.inputs["input_ids"]
        self.visual = torch.cat([(self.ids.flatten() == token).nonzero()[:, 0] for token in (IMAGE_ID, VIDEO_ID)])
        columns = torch.arange(self.ids.numel()).view(self.ids.shape)
        self.positions = torch.stack([axis * AXIS + columns for axis in range(3)])
        self.compression = Compression(config, VISION, CHANNELS, 3)
        self.plan = self.compression.plan(
            *(self.inputs[name] for name in ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw")),
            self.inputs["second_per_grid_ts"],
            self.positions,
        )
        noise = torch.randn(self.ids.numel(), NOISE, generator=torch.Generator().manual_seed(0))
        self.rows = torch.cat([torch.eye(self.ids.numel()), 4 * noise], 1).to(device)
        text = self.rows.index_select(0, self.plan.before(0).text.to(device))
        features = self.rows[self.visual.to(device)]
        self.run, self.embeds = self.compression.prefill(self.plan, text, features, deepstack=(features,))

    def text(self, sample: int) -> list[int]:
        real = self.inputs["attention_mask"][sample].bool() & (self.ids[sample] < IMAGE_ID)
        return (sample * self.ids.shape[1] + real.nonzero()[:, 0]).tolist()

    def spans(self, sample: int) -> list[set[int]]:
        """The columns of each picture or video of a sample."""
        row, first = self.ids[sample].tolist(), sample * self.ids.shape[1]
        sizes = iter(size for _, size in sorted(self._runs(sample)))
        columns = [first + column for column, token in enumerate(row) if token in (IMAGE_ID, VIDEO_ID)]
        out = []
        for size in sizes:
            out.append(set(columns[:size]))
            columns = columns[size:]
        assert not columns
        return out

    def _runs(self, sample: int):
        tokens = [part[1] for part in MIXED[sample].parts if not isinstance(part, int)]
        return [(place, int(np.prod(grid))) for place, grid in enumerate(tokens)]


def members(row: torch.Tensor) -> dict[int, float]:
    """The columns that a token consists of, with the weight of each."""
    return {column: row[column].item() for column in row.nonzero()[:, 0].tolist()}


def check_places(marked: Marked, hidden: torch.Tensor, stage: int, name: str) -> list[dict[int, float]]:
    """Check that each sample has its text in order and visual tokens made of one picture's columns: every column in
    exactly one token (at most one in ALONE), and in "ppe" with equal weights. Returns the members of each place."""
    real = marked.plan.on(hidden.device).stages[stage].real.cpu()
    marks = hidden[..., :-NOISE].cpu()
    out = []
    for sample in range(len(real)):
        found = [members(row) for row in marks[sample][real[sample]]]
        spans = marked.spans(sample)
        texts = [place for place in found if not any(set(place) <= span for span in spans)]
        assert [list(place) for place in texts] == [[column] for column in marked.text(sample)]
        visual = [place for place in found if place not in texts]
        seen = [column for place in visual for column in place]
        assert len(seen) == len(set(seen))
        if name not in ALONE:
            assert set(seen) == set().union(*spans)
        if name == "ppe":
            for place in visual:
                assert_near(torch.tensor(list(place.values())), torch.full((len(place),), 1 / len(place)), OPERATORS)
        for place in found:
            assert_near(torch.tensor(sum(place.values())), torch.tensor(1.0), OPERATORS)
        out += found
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_every_place_holds_its_own_tokens_and_their_positions(name, device):
    marked = Marked(CONFIGS[name], device)
    run = marked.run
    hidden = marked.embeds
    places = check_places(marked, hidden, 0, name)
    check_positions(marked, places, 0, name)
    # The deepstack features added after the first layer reach the same places as the tokens, and no others.
    added = run.leave(0, torch.zeros_like(hidden))
    real = marked.plan.on(hidden.device).stages[0].real
    words = {column for sample in range(3) for column in marked.text(sample)}
    text = torch.tensor([words.issuperset(place) for place in places], device=hidden.device)
    assert_equal(added[real][~text], hidden[real][~text])
    assert_equal(added[real][text], torch.zeros_like(hidden[real][text]))
    assert_equal(added[~real], torch.zeros_like(hidden[~real]))
    for stage in range(1, len(marked.plan.stages)):
        hidden = run.enter(stage, hidden)
        places = check_places(marked, hidden, stage, name)
        check_positions(marked, places, stage, name)


def check_positions(marked: Marked, places: list[dict[int, float]], stage: int, name: str) -> None:
    """The K rows of each axis hold positions of the place's own members (or of columns lent to it, each to one place),
    and they name the same members on every axis."""
    rows = marked.run.rows[stage].cpu()  # [axes * K, B, L]
    real = marked.plan.on(torch.device("cpu")).stages[stage].real
    axes = rows[:, real].view(3, -1, len(places))
    columns = axes - AXIS * torch.arange(3)[:, None, None]
    assert_equal(columns[0], columns[1])
    assert_equal(columns[0], columns[2])
    spans = [span for sample in range(3) for span in marked.spans(sample)]
    lent = set()
    for place, held in zip(places, columns[0].T.tolist()):
        if name == "lent positions":  # a dropped token lends its position to one place only
            assert set(held) <= next((span for span in spans if set(place) <= span), set(place))
            assert not lent & set(held)
            lent |= set(held)
        else:
            assert set(held) <= set(place)
            assert name != "ppe" or len(set(held)) == min(len(held), len(place))


@pytest.mark.parametrize("pairs", [HALVES, NEIGHBOURS])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [CHANNELS, interleaved_channels([12, 10, 10])], ids=["sections", "interleaved"])
def test_every_channel_is_turned_by_its_own_row(k, channels, pairs, device):
    """Every entry of the rows is a distinct number, which the angle of each channel must reproduce."""
    batch_, length, step = 2, 5, 1e-3
    rows = torch.arange(3 * k * batch_ * length).view(3 * k, batch_, length)
    frequencies = torch.full((len(channels),), step)
    cos, sin = (part.cpu() for part in rotary_table(rows.to(device), frequencies.to(device), channels, pairs=pairs))
    told = (torch.atan2(sin, cos) / step).round().long()
    half = len(channels)
    for channel, axis in enumerate(channels):
        own = [c for c in range(half) if channels[c] == axis]
        run = next(n for n, part in enumerate(np.array_split(own, k)) if channel in part)
        assert channel_rows(3 * k, channels)[channel] == axis * k + run
        for place in (channel, channel + half) if pairs == HALVES else (2 * channel, 2 * channel + 1):
            assert_equal(told[..., place], rows[axis * k + run])


def marks(count: int, width: int, device: str) -> torch.Tensor:
    """[count, width] float32 in which every channel of a row holds the row's number."""
    return torch.arange(count, dtype=torch.float32)[:, None].expand(-1, width).contiguous().to(device)


def test_the_tower_is_given_the_patches_of_the_kept_cells_and_their_windows(device):
    """Every third cell of two pictures, of 4 x 6 and 2 x 2 cells, is dropped."""
    grids, merge = torch.tensor([[1, 8, 12], [1, 4, 4]]), 2
    cells = 4 * 6 + 2 * 2
    keeps = np.arange(cells) % 3 != 1
    source = np.where(keeps, np.arange(cells), np.arange(cells) - 1)
    kept = KeptPatches.of(Chosen.read(torch.from_numpy(source), [24, 4]), grids.to(device), merge, cells * merge**2)
    patches = marks(cells * merge**2, 7, device)
    expected = [4 * cell + patch for cell in range(cells) if keeps[cell] for patch in range(4)]
    assert_equal(kept.picked(patches).cpu(), torch.tensor(expected, dtype=torch.float32)[:, None].expand(-1, 7))
    assert kept.frames.tolist() == [4 * int(keeps[:24].sum()), 4 * int(keeps[24:].sum())]
    # Windows of 2 x 2 cells, visited row by row.
    walk = [6 * (2 * r + i) + 2 * c + j for r in range(2) for c in range(3) for i in range(2) for j in range(2)]
    walk += [24, 25, 26, 27]
    borders = torch.arange(0, cells * 4 + 1, 16)
    order, ends = kept.windows(torch.tensor(walk).to(device), borders.to(device))
    left = [cell for cell in walk if keeps[cell]]
    assert_equal(marks(cells, 3, device)[torch.tensor(keeps)][order][:, 0].cpu(), torch.tensor(left).float())
    counts = [sum(bool(keeps[cell]) for cell in walk[at : at + 4]) for at in range(0, cells, 4)]
    assert ends.tolist() == [0, *(4 * np.cumsum(counts)).tolist()]


def test_patches_that_leave_the_tower_come_back_to_their_places(device):
    """Two pools of 6 and 4 patches: staying patches keep what the tower added to them, and each leaving patch moves by
    the mean change of its nearest staying patches."""
    stay, leave = [torch.tensor([0, 2, 5]), torch.tensor([7])], [torch.tensor([1, 3, 4]), torch.tensor([6, 8, 9])]
    near = [torch.tensor([[0, 1], [1, 2], [2, 1]]), torch.tensor([[3], [3], [3]])]
    leaving = Leaving.of(*([part.to(device) for part in parts] for parts in (stay, leave, near)))
    given = marks(10, 5, device)
    compact = leaving.compact(given)
    assert_equal(compact[:4].cpu(), given.cpu()[[0, 2, 5, 7]])
    assert_equal(leaving.full(compact).cpu(), given.cpu())
    compact[:4] += torch.tensor([100.0, 200.0, 400.0, 800.0], device=device)[:, None]
    moved = torch.tensor([100, 150, 200, 300, 300, 400, 800, 800, 800, 800]).float()
    assert_equal(leaving.full(compact).cpu(), given.cpu() + moved[:, None])


def test_cells_that_were_joined_in_the_tower_come_out_as_their_group(device):
    group = torch.tensor([0, 0, 1, 2, 1, 2])
    joined = Joined.of(torch.tensor([0, 2, 5]), group, torch.tensor([2, 2, 2]), (0, 3), patches=4)
    joined = joined.to(torch.device(device))
    given = marks(24, 5, device)
    on = given.index_select(0, joined.rows)
    assert_equal(on[:, 0].cpu(), torch.tensor([0, 1, 2, 3, 8, 9, 10, 11, 20, 21, 22, 23]).float())
    expected = torch.cat([torch.tensor([0, 8, 20])[of] + torch.arange(4) for of in group]).float()
    assert_equal(joined.full(on)[:, 0].cpu(), expected)
