"""DeepSpeed's settings, by name: `deepspeed: zero2`. Imported as ppe_npu.deepspeed_configs, as setup.cfg says."""
