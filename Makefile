# Two commands on a fresh machine with Python 3.11 or 3.12:   make demo   |   make test
# Everything runs in .venv, which the first command makes from the versions pinned in scripts/constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
DEVICE ?= auto
# EMULATE=1 runs any target on an emulated Ascend device (tests/ascend_emulator), in an environment that has torch_npu.
VENV   := $(if $(filter 1,$(EMULATE)),.venv-npu,.venv)
OLDEST := .venv-oldest
LMMS   := .venv-lmms
NEWEST := .venv-newest
BIN    := $(VENV)/bin
BENCH   = $(or $(OUTPUT),runs/bench)

# An option for ppe-npu from a variable of make, where it is set: $(call option,--model,$(MODEL))
option = $(if $(2),$(1) $(2))
common = $(call option,--model,$(MODEL)) $(call option,--data-root,$(DATA_ROOT)) $(call option,--output,$(OUTPUT)) \
         $(call option,--compression,$(COMPRESSION)) $(call option,--ratio,$(RATIO)) $(call option,--k,$(K)) \
         $(call option,--dtype,$(DTYPE))
# NPROC=8 starts so many processes on this machine; NNODES=2 NODE_RANK=0 MASTER_ADDR=host is one of two machines (docs/training.md).
nodes  = $(if $(NNODES),--nnodes $(NNODES) --node-rank $(NODE_RANK) --master-addr $(MASTER_ADDR) --master-port $(or $(MASTER_PORT),29500))
launch = $(BIN)/$(if $(NPROC),torchrun $(nodes) --nproc-per-node $(NPROC) -m ppe_npu.cli,ppe-npu)

ifeq ($(EMULATE),1)
include $(VENV)/emulator.mk
else ifneq ($(filter npu%,$(DEVICE)),)
NPU := 1
# Before anything is installed: beside a torch_npu without CANN, `import torch` fails for every device.
ifneq ($(filter demo train eval parity bench,$(MAKECMDGOALS)),)
ifeq ($(ASCEND_HOME_PATH)$(ASCEND_TOOLKIT_HOME),)
$(error DEVICE=$(DEVICE) finds no CANN: on an Ascend machine source its set_env.sh (as in /usr/local/Ascend/ascend-toolkit) first, anywhere else add EMULATE=1)
endif
endif
endif
READY := $(VENV)/.ready $(if $(NPU),$(VENV)/.torch_npu)

.PHONY: help demo test test-all test-machines test-matrix test-newest test-lmms test-npu test-emulated ascend-emulator bench lint format train eval report parity clean

help:
	@echo "make demo     train and compare dense, Chat-UniVi, keep-one and PPE in miniature   [DEVICE= SEEDS=3 FULL=1]"
	@echo "make test     all fast tests        make test-all   the slow ones, too        make lint   style and imports"
	@echo "make train    fine-tune with compression     [DEVICE= MODEL= DATA= DATA_ROOT= COMPRESSION= RATIO= K= DTYPE= OUTPUT="
	@echo "                RECIPE= NPROC= NNODES= DEEPSPEED= TRAIN_ARGS='--packing --adapter lora ...']"
	@echo "make eval     evaluate                       [DEVICE= MODEL= BENCHMARKS= DATA_ROOT= COMPRESSION= RATIO= K= DTYPE= OUTPUT= NPROC= BATCH_SIZE=]"
	@echo "make report   tables and a picture from finished evaluations                       [OUTPUT=runs/eval]"
	@echo "make parity   this device's operators against the fp64 specification                [DEVICE=]"
	@echo "make bench    every operator, prefill, decoding and a training step; tables, JSON, plots  [DEVICE= OUTPUT=runs/bench]"
	@echo "make test-npu      the NPU backend and the operators on an emulated Ascend device; EMULATE=1 runs any target there"
	@echo "make test-machines  the tests under the code paths of other CPUs           [QUICK=1]"
	@echo "make test-matrix   the engine's tests with the newest and the oldest transformers of our range"
	@echo "make test-newest   the same with the newest torch and transformers, and what refuses them"
	@echo "make test-lmms     tasks of lmms-eval on compressed models, in an environment that has it"

demo: $(READY)
	$(BIN)/ppe-npu demo --device $(DEVICE) $(call option,--seeds,$(SEEDS)) $(if $(filter-out 0,$(FULL)),--full)

train: $(READY)
	$(strip $(call launch) train $(call option,--device,$(if $(RECIPE),$(filter-out auto,$(DEVICE)),$(DEVICE))) $(call option,--config,$(RECIPE)) \
		$(call option,--data,$(DATA)) $(common) $(call option,--deepspeed,$(DEEPSPEED)) $(TRAIN_ARGS))

# Without a model: the embedded one, trained first if it is not there.
eval: $(READY) $(if $(MODEL),,runs/train/final)
	$(call launch) eval --device $(DEVICE) $(call option,--benchmarks,$(BENCHMARKS)) $(common) \
		$(call option,--batch-size,$(BATCH_SIZE))

report: $(VENV)/.ready
	$(BIN)/ppe-npu report $(OUTPUT)

runs/train/final: | $(READY)
	$(BIN)/ppe-npu train --device $(DEVICE)

parity: $(READY)
	$(BIN)/ppe-npu parity --device $(DEVICE)

# Two workers of one thread each: the tests are many small ones.
# Random draws are the same in every run: other ones are in test-all, which says its seed (SEED=5 makes them again).
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: SEED := $(or $(SEED),$(shell date +%s))
test-all: $(VENV)/.ready
	@echo "random draws of SEED=$(SEED)"
	OMP_NUM_THREADS=1 PPE_TEST_SEED=$(SEED) $(BIN)/python -m pytest -n 2 --hypothesis-seed=$(SEED)

# Under the code paths of other machines, as far as this CPU has them; QUICK=1 is a short part.
test-machines: $(VENV)/.ready
	$(BIN)/python scripts/test_machines.py $(if $(QUICK),--quick)

# The tests of all that meets transformers, with the newest and the oldest version of our range.
test-matrix: MATRIX ?= $(VENV) $(OLDEST)
test-matrix: $(VENV)/.ready $(OLDEST)/.ready
	for environment in $(MATRIX); do \
		OMP_NUM_THREADS=1 $$environment/bin/python -m pytest -n 2 -m "not slow" --ignore tests/backends --ignore tests/demo || exit 1; \
	done

# The newest torch and transformers of the index, whatever our bounds say: one line names who refuses them.
test-newest: $(NEWEST)/.ready
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python scripts/newest.py

# lmms-eval brings a hundred packages of its own: they get an environment of their own.
test-lmms: $(LMMS)/.ready
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest tests/evaluation/test_lmms.py tests/evaluation/test_lmms_task.py

# On the emulated device, which is built if it is not there. In the second line EMULATE=1 holds for what it runs.
test-npu:
	$(MAKE) EMULATE=1 test-emulated

test-emulated: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" tests/test_ascend_emulator*.py tests/test_npu_*.py tests/backends
	$(BIN)/ppe-npu parity --device npu
	$(BIN)/ppe-npu parity check tests/data/parity_cpu --device npu

# Only builds the emulator, and prints the folder that it is in.
ascend-emulator: $(if $(filter 1,$(EMULATE)),$(VENV)/.ready)
	@$(if $(filter 1,$(EMULATE)),echo $(ASCEND_EMULATOR),$(MAKE) --no-print-directory EMULATE=1 $@)

bench: $(READY)
	$(BIN)/python scripts/bench_ops.py --device $(DEVICE) --output $(BENCH)/ops.json
	$(BIN)/python scripts/bench_prefill.py --device $(DEVICE) --output $(BENCH)/prefill.json

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_house.py

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch is named in the command that installs everything else, so that nothing pulls another release of it.
# torchvision (transformers' video processors need it) is installed by itself, and mended: PyPI's wants CUDA libraries.
pip = $(1)/bin/pip install --quiet --disable-pip-version-check
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(1)
	$(call pip,$(1)) --constraint scripts/constraints.txt torch==2.13.0 --editable '.[train,eval,dev]'
	$(call pip,$(1)) --constraint scripts/constraints.txt --no-deps torchvision
	$(1)/bin/python scripts/mend_torchvision.py
endef

$(VENV)/.ready: setup.cfg pyproject.toml scripts/constraints.txt
	$(call environment,$(VENV))
	$(if $(filter 1,$(EMULATE)),$(torch_npu))
	@touch $@

# On an Ascend machine, the first time that DEVICE=npu is asked for. It needs nothing that is not there already.
torch_npu = $(call pip,$(VENV)) --constraint scripts/constraints.txt --no-deps torch_npu
.venv/.torch_npu: .venv/.ready
	$(torch_npu)
	@touch $@

# Exports the variables that put torch_npu on the emulator. make reads it again once it is made.
.venv-npu/emulator.mk: .venv-npu/.ready $(wildcard tests/ascend_emulator/*.* tests/ascend_emulator/stubs/*)
	.venv-npu/bin/python -m tests.ascend_emulator.build --make > $@ || { rm -f $@; exit 2; }

$(OLDEST)/.ready: setup.cfg pyproject.toml scripts/constraints.txt scripts/oldest.txt
	$(call environment,$(OLDEST))
	$(call pip,$(OLDEST)) --no-deps --requirement scripts/oldest.txt
	@touch $@

$(NEWEST)/.ready: setup.cfg pyproject.toml scripts/constraints.txt
	$(call environment,$(NEWEST))
	$(call pip,$(NEWEST)) --upgrade torch torchvision transformers
	$(NEWEST)/bin/python scripts/mend_torchvision.py
	@touch $@

# wandb and pandas, which lmms-eval brings, want older releases of these two than we test with.
$(LMMS)/.ready: setup.cfg pyproject.toml scripts/constraints.txt
	$(call environment,$(LMMS))
	grep -vE '^(protobuf|python-dateutil)=' scripts/constraints.txt > $(LMMS)/constraints.txt
	$(call pip,$(LMMS)) --constraint $(LMMS)/constraints.txt torch==2.13.0 --editable '.[lmms]'
	$(LMMS)/bin/python scripts/mend_torchvision.py
	@touch $@

clean:
	rm -rf .venv .venv-npu $(OLDEST) $(NEWEST) $(LMMS) runs build *.egg-info
