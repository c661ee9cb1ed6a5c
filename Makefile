# Two commands on a fresh machine with Python 3.11 or 3.12:   make demo   |   make test   (make help lists the rest)
# Everything runs in .venv, which the first command makes from the versions pinned in scripts/constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# EMULATE=1 runs any target on an emulated Ascend device (tests/ascend_emulator), in an environment that has torch_npu.
VENV   := $(if $(filter 1,$(EMULATE)),.venv-npu$(addprefix -,$(TORCH_NPU)),.venv)
BIN    := $(VENV)/bin
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# $(call options,MODEL K) is "--model PATH --k 4", without those that are not set; $(call switches,FULL) is "--full".
named    = --$(shell echo $(1) | tr A-Z_ a-z-)
options  = $(strip $(foreach name,$(1),$(if $($(name)),$(call named,$(name)) $($(name)))))
switches = $(strip $(foreach name,$(1),$(if $(filter-out 0,$($(name))),$(call named,$(name)))))
MODELS := DEVICE MODEL DATA_ROOT OUTPUT COMPRESSION RATIO K DTYPE
# NPROC=8 starts 8 processes on this machine, NNODES=2 NODE_RANK=0 MASTER_ADDR=host as one of two (docs/training.md).
nodes   = $(if $(NNODES),--nnodes $(NNODES) --node-rank $(NODE_RANK) $(call options,MASTER_ADDR MASTER_PORT))
launch  = $(BIN)/$(if $(NPROC),python -m ppe_npu.cli.launch $(nodes) --nproc-per-node $(NPROC) -m ppe_npu.cli,ppe-npu)
READY  := $(VENV)/.ready
ifeq ($(EMULATE),1)
include $(VENV)/emulator.mk
else ifneq ($(and $(filter npu%,$(DEVICE)),$(filter demo train eval parity bench,$(MAKECMDGOALS))),)
READY += .venv/.torch_npu
# Before anything is installed: beside a torch_npu without CANN, `import torch` fails for every device.
$(if $(ASCEND_HOME_PATH)$(ASCEND_TOOLKIT_HOME),,$(error DEVICE=$(DEVICE) finds no CANN: on an Ascend machine source \
its set_env.sh (as in /usr/local/Ascend/ascend-toolkit) first, anywhere else add EMULATE=1))
endif
MATRIX ?= $(VENV) .venv-oldest
# Environments of your own are used as they are.
MATRIX_READY = $(foreach one,$(MATRIX:%/=%),$(one)/$(if $(filter .venv%,$(one)),.ready,pyvenv.cfg))
APART  := test-matrix test-newest test-lmms test-app test-vllm test-integrations test-frameworks test-lent \
	test-ascend-compiler test-emulated
.PHONY: $(APART) help demo train eval report parity bench test test-all test-machines test-npu ascend-emulator docs \
	lint format clean
help:
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p; s/^#(\t\[)/\1/p' Makefile | expand -t 27
demo: $(READY)  ## train and compare dense, Chat-UniVi, keep-one and PPE in miniature
#	[DEVICE= SEEDS=3 FULL=1 METHODS="divprune tome" or all TRAINING_FREE=1 TUNE_RATIOS=0.25]
	$(BIN)/ppe-npu demo $(call options,DEVICE SEEDS METHODS TUNE_RATIOS) $(call switches,FULL TRAINING_FREE)
train: $(READY)  ## fine-tune a model; without MODEL= and DATA= the embedded tiny one
#	[DEVICE= MODEL= DATA= DATA_ROOT= COMPRESSION= RATIO= K= DTYPE= OUTPUT= RECIPE= NPROC= NNODES= DEEPSPEED= TRAIN_ARGS=]
	$(launch) train $(call options,DATA $(MODELS) DEEPSPEED) $(if $(RECIPE),--config $(RECIPE)) $(TRAIN_ARGS)
eval: $(READY) $(if $(MODEL),,runs/train/final)  ## evaluate a model on benchmarks
#	[DEVICE= MODEL= BENCHMARKS= DATA_ROOT= COMPRESSION= RATIO= K= DTYPE= OUTPUT= NPROC= BATCH_SIZE=]
	$(launch) eval $(call options,BENCHMARKS BATCH_SIZE $(MODELS))
runs/train/final: | $(READY)  # the embedded model, where MODEL= names no other
	$(BIN)/ppe-npu train $(call options,DEVICE)
report: $(VENV)/.ready  ## write a report with tables and a plot from finished evaluations   [OUTPUT=runs/eval]
	$(BIN)/ppe-npu report $(OUTPUT)
parity: $(READY)  ## compare this device's operators with the fp64 specification   [DEVICE=]
	$(BIN)/ppe-npu parity $(call options,DEVICE)
bench: $(READY)  ## time operators, prefill and the vision tower: tables, JSON, plots   [DEVICE= OUTPUT=runs/bench]
	for part in ops prefill tower; do $(BIN)/python scripts/bench_$$part.py --device $(or $(DEVICE),auto) \
		--output $(or $(OUTPUT),runs/bench)/$$part.json || exit 1; done
test: $(VENV)/.ready  ## run all fast tests with two workers and the same random draws in every run
	PYTHONHASHSEED=0 $(PYTEST) -n 2 --dist worksteal -m "not slow and not ci"
test-all: SEED := $(or $(SEED),$(shell date +%s))
test-all: $(VENV)/.ready  ## run all tests, slow ones included, with new random draws, whose seed is printed   [SEED=]
	PPE_TEST_SEED=$(SEED) $(PYTEST) -n 2 --dist worksteal --hypothesis-seed=$(SEED)
test-machines: $(VENV)/.ready  ## run the tests under the code paths of other CPUs   [QUICK=1]
	$(BIN)/python scripts/test_machines.py $(call switches,QUICK)
test-matrix: $(MATRIX_READY)  ## test the engine with old transformers, too   [MATRIX=]
test-newest: .venv-newest/.ready  ## test models and training with the newest torch and transformers
test-lmms: .venv-lmms/.ready  ## run tasks of lmms-eval on compressed models
test-app: .venv-app/.ready  ## test the explorer, reports and notebooks in a browser and a kernel
test-vllm: .venv-vllm/.ready  ## compare vLLM on the CPU, with the plug-in, with transformers
test-integrations: .venv-integrations/.ready  ## run other trainers and transformers' own tests on compressed models
test-frameworks: .venv-frameworks/.ready  ## train compressed models with LLaMA-Factory and ms-swift
test-lent: .venv-lent/.ready  ## test the engine, kernels and parity with the versions of a lent GPU machine
test-ascend-compiler: .venv-ascend/.ready  ## compile our Ascend kernels with Huawei's compiler, without a device
test-emulated: $(VENV)/.ready
$(APART):  # in each environment that the target names
	for environment in $(^D); do $$environment/bin/python scripts/run_tests.py $@ || exit 1; done
test-npu:  ## test the NPU backend and the operators on an emulated Ascend device   [TORCH_NPU=2.10.0.post4]
	$(MAKE) EMULATE=1 test-emulated
ascend-emulator: $(if $(filter 1,$(EMULATE)),$(VENV)/.ready)  ## build only the emulator, and print its folder
	@$(if $(filter 1,$(EMULATE)),echo $(ASCEND_EMULATOR),$(MAKE) --no-print-directory EMULATE=1 $@)
docs: $(VENV)/.ready .venv-docs/.ready  ## run the code in the documents, and build a site from them (build/site)
	$(PYTEST) tests/test_documents.py tests/test_document_blocks.py tests/test_contributing.py
	$(BIN)/python scripts/build_site.py --mkdocs .venv-docs/bin/mkdocs
lint: $(VENV)/.ready  ## check style, imports, types and lengths
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python scripts/check_house.py && $(BIN)/mypy
format: $(VENV)/.ready ; $(BIN)/ruff check --fix . ; $(BIN)/ruff format .
clean: ; rm -rf .venv .venv-* runs build *.egg-info
# The environments: .venv, and for single targets .venv-npu, .venv-oldest and others. The script makes .ready last.
%/.ready: setup.cfg pyproject.toml scripts/environment.py $(wildcard scripts/*.txt)
	$(PYTHON) scripts/environment.py $*
.venv/.torch_npu: .venv/.ready
	$(PYTHON) scripts/environment.py .venv --add-torch-npu
# Exports the variables that put torch_npu on the emulator. make reads it again once it is made.
%/emulator.mk: %/.ready $(wildcard tests/ascend_emulator/*.* tests/ascend_emulator/stubs/*)
	$*/bin/python -m tests.ascend_emulator.build --make > $@ || { rm -f $@; exit 2; }
