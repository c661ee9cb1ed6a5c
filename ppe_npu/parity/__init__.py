"""Do a whole model's numbers agree on two devices? (Single operators: ppe_npu.backends.parity.)

model.py        a tiny Qwen2.5-VL and a batch of prompts, the same everywhere
end_to_end.py   logits, loss, gradients, optimizer steps and generated ids against fp64
bundle.py       what one machine computed, in files that another one checks
"""
