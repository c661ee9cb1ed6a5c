"""torch.compile: where graphs break, how often they are recompiled, and that they compute the same results.

Models are only traced, without inductor, because a graph breaks at the same places on every device. docs/cuda.md
describes the consequences for CUDA graphs.
"""

import pytest
import torch
from prompts import PPE
from support import Prompt, batch, random_model
from tolerances import assert_rounds_alike, exact
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from ppe_npu import CompressionConfig, compat, compress, restore
from ppe_npu.methods import DART, DPCKNN, PACT, FastV, PixelPrune, PyramidDrop, SparseVLM
from ppe_npu.models.fused import fuse

SLOW = pytest.mark.slow  # tracing takes seconds
CASCADE = CompressionConfig.preset("ppe", k=4, layers=[1, 2])
PROMPTS = [batch(Prompt([3, ("video", (2, 4, 4)), 3], seed=seed)) for seed in range(3)]


def eager(model, inputs):
    """Logits of several prompts, in the model's dtype and in fp64."""

    def run():
        return [model(**some).logits for some in inputs]

    return run(), exact(model, run)


class Graphs:
    """A backend that runs graphs as traced, and collects them."""

    def __init__(self):
        torch._dynamo.reset()
        self.seen = []

    def __call__(self, graph: torch.fx.GraphModule, example_inputs):
        self.seen.append(graph)
        return graph.forward


@SLOW
@pytest.mark.parametrize("config", [PPE, CASCADE], ids=["ppe", "cascade"])
@torch.no_grad()
def test_the_decoder_is_one_graph_for_all_prompts_of_one_shape(model, config):
    """The graph includes merges between layers, in which clustering is one node."""
    compress(fuse(model), config)
    expected, true = eager(model, PROMPTS)
    graphs = Graphs()
    model.model.language_model.compile(backend=graphs, fullgraph=True)
    found = [model(**inputs).logits for inputs in PROMPTS]
    assert len(graphs.seen) == 1
    nodes = [str(node.target) for node in graphs.seen[0].graph.nodes]
    assert nodes.count("ppe_npu.dpc_knn") == len(config.layers)
    assert_rounds_alike(found, expected, true)
    assert ("ms" in str(model.compression.report)) == (not config.layers)  # there is no clock inside a graph


LOOKING = {
    "rows": {"steps": [FastV(layer=1), PyramidDrop(layer=2)]},
    "keys": {"steps": [DART(layer=1), SparseVLM(layer=2)]},
    "sizes": {"steps": [PACT(layer=1), DPCKNN(layer=2)], "proportional_attention": True},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) for name in ("keys", "rows", "sizes")])
@torch.no_grad()
def test_what_methods_look_at_is_part_of_the_graph(model, name):
    compress(fuse(model), CompressionConfig(**LOOKING[name], k=4))
    expected, true = eager(model, PROMPTS)
    graphs = Graphs()
    model.model.language_model.compile(backend=graphs, fullgraph=True)
    assert_rounds_alike([model(**inputs).logits for inputs in PROMPTS], expected, true)
    assert len(graphs.seen) == 1


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("module", marks=SLOW),
        pytest.param("forward", marks=pytest.mark.ci),
        pytest.param("layers", marks=SLOW),
    ],
)
@torch.no_grad()
def test_other_padding_does_not_compile_again(part):
    """Compiled code gets a mask, because the lengths of segments would be constants of its graph."""
    model = compress(fuse(random_model(num_hidden_layers=2)), CompressionConfig.preset("ppe", k=4, layers=[1]))
    prompts = [
        batch(Prompt([3, ("image", (1, 4, 4)), 3]), Prompt([3, ("image", (1, 2, 2)), count])) for count in (1, 2, 3, 4)
    ]
    real = [model(**inputs).past_key_values.ppe_state.masks[-1] for inputs in prompts]
    expected, true = eager(model, prompts)
    graphs, text = Graphs(), model.model.language_model
    if part == "layers":
        text.layers = torch.nn.ModuleList(torch.compile(layer, backend=graphs) for layer in text.layers)
    elif part == "forward":
        text.forward = torch.compile(text.forward, backend=graphs, fullgraph=True)
    else:
        text.compile(backend=graphs, fullgraph=True)
    found = [model(**inputs).logits for inputs in prompts]
    most = len(text.layers) if part == "layers" else 2  # recompiled once, when the amount of text becomes a symbol
    assert len(graphs.seen) <= most
    assert_rounds_alike(*([row[mask] for row, mask in zip(rows, real)] for rows in (found, expected, true)))


@SLOW
@pytest.mark.parametrize("config", [PPE, CASCADE], ids=["ppe", "cascade"])
@torch.no_grad()
def test_a_prompt_breaks_the_graph_once_where_the_host_plans(model, config):
    compress(fuse(model), config)
    model(**PROMPTS[0])
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model.forward)(**PROMPTS[0])
    assert (explained.graph_break_count, explained.graph_count) == (1, 2)


@pytest.mark.slow
@torch.no_grad()
def test_a_whole_model_is_compiled_for_prompts_of_several_lengths(model):
    compress(fuse(model), PPE)
    prompts = [batch(Prompt([count, ("image", (1, 4, 4)), 3])) for count in (3, 4, 6)]
    expected, true = eager(model, prompts)
    compiled = torch.compile(model.forward, backend=Graphs())
    for inputs, logits, precise in zip(prompts, expected, true):
        assert_rounds_alike(compiled(**inputs).logits, logits, precise)
        assert isinstance(model.compression.report.kv_bytes, int)


PIXELS = CompressionConfig(steps=[PixelPrune(threshold=0.5), DPCKNN(0.5)], k=4)


def pictures():
    """Prompts whose pictures differ in the number of cells that equal the first one."""
    prompts = [Prompt([3, ("image", (1, 4, 4)), 3], seed=seed) for seed in range(3)]
    for count, prompt in zip((4, 6, 8), prompts):
        (pixels,) = prompt.pixels["image"]
        pixels[4 : 4 * count] = pixels[:4].repeat(count - 1, 1)
    return [batch(prompt) for prompt in prompts]


@SLOW
@torch.no_grad()
def test_cells_may_be_dropped_at_the_pixels(model):
    """They are chosen while the host plans, where the graph breaks anyway, so there is no further break."""
    compress(fuse(model), PIXELS)
    prompts, graphs = pictures(), Graphs()
    expected, true = eager(model, prompts)
    kept = {model(**inputs).logits.shape[1] for inputs in prompts}
    assert len(kept) == 3
    explained = torch._dynamo.explain(model.forward)(**prompts[0])
    assert (explained.graph_break_count, explained.graph_count) == (1, 2)
    torch._dynamo.reset()
    forward = torch.compile(model.forward, backend=graphs)
    assert_rounds_alike([forward(**inputs).logits for inputs in prompts], expected, true)
    assert graphs.seen


@SLOW
@pytest.mark.parametrize("config", [PPE, CASCADE], ids=["ppe", "cascade"])
@torch.no_grad()
def test_decoding_is_one_graph_compiled_again_once_for_any_length(model, config):
    compress(fuse(model), config)

    def decode(forward) -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config.text_config)
        model(**PROMPTS[0], past_key_values=cache, use_cache=True)
        steps = ({"input_ids": torch.tensor([[token]]), "past_key_values": cache} for token in range(5, 10))
        return [forward(**step, use_cache=True).logits for step in steps]

    graphs = Graphs()
    expected, true = decode(model.forward), exact(model, lambda: decode(model.forward))
    found = decode(torch.compile(model.forward, backend=graphs, fullgraph=True))
    assert len(graphs.seen) <= 2
    assert_rounds_alike(found, expected, true)


@pytest.mark.skipif(
    bool(compat.cache_position(Qwen2_5_VLTextModel.forward, 0, torch.zeros(1, 1, 1))),
    reason="older transformers is told by the host where in a static cache a token goes",
)
@pytest.mark.parametrize("config", [pytest.param(PPE, marks=SLOW), CASCADE], ids=["ppe", "cascade"])
@torch.no_grad()
@pytest.mark.ci
def test_a_step_into_a_static_cache_is_one_graph_for_all_steps_and_prompts(model, config):
    """No shape or constant changes, nothing is read back, and tensors keep their memory, so a recorded step can be
    replayed."""
    compress(fuse(model), config)
    text, graphs = model.config.text_config, Graphs()
    compiled = torch.compile(model.forward, backend=graphs, fullgraph=True, dynamic=False)
    fixed, places = StaticCache(config=text, max_cache_len=64), []

    def decode(forward, inputs, cache) -> list[torch.Tensor]:
        model(**inputs, past_key_values=cache, use_cache=True)
        steps = ({"input_ids": torch.tensor([[token]]), "past_key_values": cache} for token in range(5, 10))
        return [forward(**step, use_cache=True).logits for step in steps]

    for inputs in (PROMPTS[0], batch(Prompt([2, ("image", (1, 4, 4)), 4]))):
        found = decode(compiled, inputs, fixed)
        places.append([tensor.data_ptr() for tensor in fixed.ppe_state.tensors])

        def usual(inputs=inputs) -> list[torch.Tensor]:
            return decode(model.forward, inputs, DynamicCache(config=text))

        assert_rounds_alike(found, usual(), exact(model, usual))
        known = fixed.ppe_state.settled()
        assert known.lengths == tuple(fixed.ppe_state.filled.tolist())
        assert (known.seen, known.decoded) == (inputs["input_ids"].shape[1] + 5, 5)
        fixed.reset()
    assert len(graphs.seen) == 1
    assert places[0] == places[1]


def test_generation_compiles_a_static_cache_only_if_asked_to(model, monkeypatch):
    """On CUDA, transformers would do it by default."""
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    inputs = compat.cache_argument(type(model).forward, StaticCache(config=model.config.text_config, max_cache_len=8))
    asked = GenerationConfig(compile_config=CompileConfig())
    compress(model, PPE)
    assert not model._valid_auto_compile_criteria(inputs, GenerationConfig())
    assert model._valid_auto_compile_criteria(inputs, asked)
    restore(model)
    assert model._valid_auto_compile_criteria(inputs, GenerationConfig())
