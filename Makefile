# Two commands on a fresh machine with Python 3.11 or 3.12:   make demo   |   make test   (make help lists the rest)
# Everything runs in .venv, which the first command makes from the versions pinned in scripts/constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
DEVICE ?= auto
# EMULATE=1 runs any target on an emulated Ascend device (tests/ascend_emulator), in an environment that has torch_npu.
VENV := $(if $(filter 1,$(EMULATE)),.venv-npu$(addprefix -,$(TORCH_NPU)),.venv)
BIN  := $(VENV)/bin
WORKERS := -n 2 --dist worksteal
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# An option for ppe-npu from a variable of make, where it is set: $(call option,--model,$(MODEL))
option = $(if $(2),$(1) $(2))
common = $(call option,--model,$(MODEL)) $(call option,--data-root,$(DATA_ROOT)) $(call option,--output,$(OUTPUT)) \
         $(call option,--compression,$(COMPRESSION)) $(call option,--ratio,$(RATIO)) $(call option,--k,$(K)) $(call option,--dtype,$(DTYPE))
# NPROC=8 starts so many processes on this machine; NNODES=2 NODE_RANK=0 MASTER_ADDR=host is one of two machines (docs/training.md).
nodes  = $(if $(NNODES),--nnodes $(NNODES) --node-rank $(NODE_RANK) --master-addr $(MASTER_ADDR) --master-port $(or $(MASTER_PORT),29500))
launch = $(BIN)/$(if $(NPROC),python -m ppe_npu.cli.launch $(nodes) --nproc-per-node $(NPROC) -m ppe_npu.cli,ppe-npu)
LENT_TESTS := tests/backends tests/engine tests/parity tests/models/test_qwen2_5_vl.py tests/models/test_stages.py tests/scripts/test_device_check.py
READY := $(VENV)/.ready
ifeq ($(EMULATE),1)
include $(VENV)/emulator.mk
else ifneq ($(and $(filter npu%,$(DEVICE)),$(filter demo train eval parity bench,$(MAKECMDGOALS))),)
READY += .venv/.torch_npu
# Before anything is installed: beside a torch_npu without CANN, `import torch` fails for every device.
$(if $(ASCEND_HOME_PATH)$(ASCEND_TOOLKIT_HOME),,$(error DEVICE=$(DEVICE) finds no CANN: on an Ascend machine source its set_env.sh \
(as in /usr/local/Ascend/ascend-toolkit) first, anywhere else add EMULATE=1))
endif
.PHONY: help demo train eval report parity bench test test-all test-machines test-matrix test-newest test-lmms test-app test-integrations test-frameworks test-vllm test-lent test-ascend-compiler test-npu test-emulated ascend-emulator docs lint format clean
help:
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 22
demo: $(READY)  ## train and compare dense, Chat-UniVi, keep-one and PPE in miniature   [DEVICE= SEEDS=3 FULL=1 METHODS="divprune tome" or all TRAINING_FREE=1 TUNE_RATIOS=0.25]
	$(BIN)/ppe-npu demo --device $(DEVICE) $(call option,--seeds,$(SEEDS)) $(if $(filter-out 0,$(FULL)),--full) \
		$(call option,--methods,$(METHODS)) $(if $(filter-out 0,$(TRAINING_FREE)),--training-free) $(call option,--tune-ratios,$(TUNE_RATIOS))
train: $(READY)  ## fine-tune a model; without MODEL= and DATA= the embedded tiny one   [DEVICE= MODEL= DATA= DATA_ROOT= COMPRESSION= RATIO= K= DTYPE= OUTPUT= RECIPE= NPROC= NNODES= DEEPSPEED= TRAIN_ARGS='--packing ...']
	$(strip $(launch) train $(call option,--device,$(if $(RECIPE),$(filter-out auto,$(DEVICE)),$(DEVICE))) $(call option,--config,$(RECIPE)) \
		$(call option,--data,$(DATA)) $(common) $(call option,--deepspeed,$(DEEPSPEED)) $(TRAIN_ARGS))
eval: $(READY) $(if $(MODEL),,runs/train/final)  ## evaluate a model on benchmarks   [DEVICE= MODEL= BENCHMARKS= DATA_ROOT= COMPRESSION= RATIO= K= DTYPE= OUTPUT= NPROC= BATCH_SIZE=]
	$(strip $(launch) eval --device $(DEVICE) $(call option,--benchmarks,$(BENCHMARKS)) $(common) $(call option,--batch-size,$(BATCH_SIZE)))
runs/train/final: | $(READY)  # the embedded model, where MODEL= names no other
	$(BIN)/ppe-npu train --device $(DEVICE)
report: $(VENV)/.ready  ## write a report with tables and a plot from finished evaluations   [OUTPUT=runs/eval]
	$(BIN)/ppe-npu report $(OUTPUT)
parity: $(READY)  ## compare this device's operators with the fp64 specification   [DEVICE=]
	$(BIN)/ppe-npu parity --device $(DEVICE)
bench: $(READY)  ## time operators, prefill, decoding, a training step and the tower: tables, JSON, plots   [DEVICE= OUTPUT=runs/bench]
	for part in ops prefill tower; do \
		$(BIN)/python scripts/bench_$$part.py --device $(DEVICE) --output $(or $(OUTPUT),runs/bench)/$$part.json || exit 1; done
test: $(VENV)/.ready  ## run all fast tests with two workers and the same random draws in every run
	PYTHONHASHSEED=0 $(PYTEST) $(WORKERS) -m "not slow and not ci"
test-all: SEED := $(or $(SEED),$(shell date +%s))
test-all: $(VENV)/.ready  ## run all tests, slow ones included, with new random draws, whose seed is printed   [SEED=]
	@echo "random draws of SEED=$(SEED)"
	PPE_TEST_SEED=$(SEED) $(PYTEST) $(WORKERS) --hypothesis-seed=$(SEED)
test-machines: $(VENV)/.ready  ## run the tests under the code paths of other CPUs   [QUICK=1]
	$(BIN)/python scripts/test_machines.py $(if $(QUICK),--quick)
test-matrix: $(VENV)/.ready .venv-oldest/.ready  ## run the engine's tests with the pinned and the oldest supported transformers   [MATRIX=]
	for environment in $(or $(MATRIX),$(VENV) .venv-oldest); do \
		OMP_NUM_THREADS=1 $$environment/bin/python -m pytest $(WORKERS) -m "not slow and not ci" --ignore tests/backends --ignore tests/demo || exit 1; done
test-newest: .venv-newest/.ready  ## run the tests of models and training with the newest torch and transformers, and list packages that refuse these
	OMP_NUM_THREADS=1 .venv-newest/bin/python scripts/newest.py
test-lmms: .venv-lmms/.ready  ## run tasks of lmms-eval on compressed models, in an environment with lmms-eval
	OMP_NUM_THREADS=1 .venv-lmms/bin/python -m pytest tests/evaluation/test_lmms.py tests/evaluation/test_lmms_task.py
test-app: .venv-app/.ready ; OMP_NUM_THREADS=1 .venv-app/bin/python -m pytest tests/app tests/test_notebooks.py  ## test the explorer, reports and notebooks in a browser and a kernel
test-vllm: .venv-vllm/.ready  ## compare vLLM on the CPU, with the plug-in, with transformers, in an environment of its own
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -n 2 --dist loadfile --durations 12 tests/serving
test-integrations: .venv-integrations/.ready  ## run other packages' trainers and transformers' own tests on compressed models, in an environment with both
	OMP_NUM_THREADS=1 .venv-integrations/bin/python -m pytest tests/training/test_trl.py tests/training/test_foreign_trainers.py tests/integrations
test-frameworks: .venv-frameworks/.ready  ## train compressed models with LLaMA-Factory and ms-swift, in an environment with both
	OMP_NUM_THREADS=1 .venv-frameworks/bin/python -m pytest tests/frameworks
test-lent: .venv-lent/.ready  ## test engine, kernels and parity with the versions of a lent GPU machine: Python 3.12, torch 2.11, Triton 3.6
	export OMP_NUM_THREADS=1; .venv-lent/bin/python -m pytest $(WORKERS) -m "not slow" $(LENT_TESTS) && .venv-lent/bin/python -m pytest tests/scripts/test_device_check.py -m slow
test-ascend-compiler: .venv-ascend/.ready  ## compile our Ascend kernels with two releases of Huawei's compiler for twelve chips, without a device
	PYTHONPATH=. OMP_NUM_THREADS=1 .venv-ascend/bin/python -m pytest -n 2 --dist loadgroup --confcutdir tests/ascend_compiler tests/ascend_compiler
test-npu:  ## test the NPU backend and the operators on an emulated Ascend device; EMULATE=1 runs any target on it   [TORCH_NPU=2.10.0.post4]
	$(MAKE) EMULATE=1 test-emulated
test-emulated: $(VENV)/.ready
	$(PYTEST) $(WORKERS) -m "not slow" tests/test_ascend_emulator*.py tests/test_npu_*.py tests/backends tests/engine/test_marked_rows.py
	$(BIN)/ppe-npu parity --device npu
	$(BIN)/ppe-npu parity check tests/data/parity_cpu --device npu
ascend-emulator: $(if $(filter 1,$(EMULATE)),$(VENV)/.ready)  ## build only the emulator, and print its folder
	@$(if $(filter 1,$(EMULATE)),echo $(ASCEND_EMULATOR),$(MAKE) --no-print-directory EMULATE=1 $@)
docs: $(VENV)/.ready .venv-docs/.ready  ## run the code in the documents, and build a site from them, with a page per method and no dead links (build/site)
	$(PYTEST) tests/test_documents.py tests/test_document_blocks.py tests/test_contributing.py
	$(BIN)/python scripts/build_site.py --mkdocs .venv-docs/bin/mkdocs
lint: $(VENV)/.ready  ## check style, imports, types and lengths
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python scripts/check_house.py
	$(BIN)/mypy
format: $(VENV)/.ready
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
clean:
	rm -rf .venv .venv-npu* .venv-oldest .venv-newest .venv-lmms .venv-integrations .venv-frameworks .venv-vllm .venv-ascend .venv-lent .venv-docs .venv-app runs build *.egg-info
# The environments: .venv, and for single targets .venv-npu, .venv-oldest and their like. The script makes .ready last.
%/.ready: setup.cfg pyproject.toml scripts/environment.py scripts/constraints.txt scripts/oldest.txt scripts/lent.txt scripts/vllm.txt scripts/frameworks.txt
	$(PYTHON) scripts/environment.py $*
.venv/.torch_npu: .venv/.ready
	$(PYTHON) scripts/environment.py .venv --add-torch-npu
# Exports the variables that put torch_npu on the emulator. make reads it again once it is made.
%/emulator.mk: %/.ready $(wildcard tests/ascend_emulator/*.* tests/ascend_emulator/stubs/*)
	$*/bin/python -m tests.ascend_emulator.build --make > $@ || { rm -f $@; exit 2; }
