"""MindSpeed's operators on CPU tensors, with their documented signatures: those of torch_npu under other names."""

import sys
import types

import fake_torch_npu


def modules() -> dict[str, types.ModuleType]:
    """The modules that `import mindspeed...` finds, by name."""
    names = ("mindspeed", "mindspeed.ops", "mindspeed.ops.fusion_attention_v2")
    found = {name: types.ModuleType(name) for name in (*names, "mindspeed.ops.npu_rotary_position_embedding")}

    def npu_fusion_attention(query, key, value, head_num, input_layout, *, pre_tokens=2147483647, **options):
        return fake_torch_npu.npu_fusion_attention(query, key, value, head_num, input_layout, **options)

    def npu_rotary_position_embedding(x, cos, sin, mode=0):
        return fake_torch_npu.npu_rotary_mul(x, cos, sin, {0: "half", 1: "interleave"}[mode])

    found["mindspeed.ops.fusion_attention_v2"].npu_fusion_attention = npu_fusion_attention
    rotary = found["mindspeed.ops.npu_rotary_position_embedding"]
    rotary.npu_rotary_position_embedding = npu_rotary_position_embedding
    return found


def install(monkeypatch) -> None:
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
