"""DeepSpeed's settings, by name: `deepspeed: zero2`. setup.cfg installs this folder as ppe_npu.deepspeed_configs."""
