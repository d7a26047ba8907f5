# Two commands do everything: `make demo` and `make test`. Each sets up .venv first; the second time that is quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test generator claims gpu lint clean

# Small settings, so that it ends within minutes on a CPU; the scripts' own defaults are the paper's.
demo: $(VENV)/run-ready
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/demo.sh $(DEMO)

test: $(VENV)/test-ready
	@echo "== the tests: some minutes on two cores"
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile

# The generator that comes with the project, made again, into $(MADE): four hours on two cores. STREAKS: pictures of rain on
# black, CLEAN: photos for RNet. After an interruption the same command goes on.
CLEAN ?= photos
STREAKS ?= streaks
MADE := made_generator
EPOCHS := 40
generator: $(VENV)/run-ready
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/generator.sh "$(STREAKS)" "$(CLEAN)" "$(MADE)" $(EPOCHS)

# The paper's claim in small: with and without generated pairs. DATA: see python experiments/claims.py --help.
DATA ?= data
claims: $(VENV)/run-ready
	$(BIN)/python experiments/claims.py --data $(DATA) --out $(DEMO)_claims

# On a machine with a CUDA GPU: the tests that only a GPU can run; then one table to paste into a report, of speeds and memory
# of all precisions, and whether recorded steps (--cuda_graphs) are those that run, and worth it.
gpu: $(VENV)/test-ready
	@$(BIN)/python -m pytest -q tests/test_gpu.py
	@$(BIN)/python -m common.benchmark all --precision auto tf32 bf16 --cuda_graphs --quiet

lint: $(VENV)/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/run-ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 ..."; exit 2; }
	@echo "== set-up: a virtual environment in $(VENV) with PyTorch; two to three minutes and 5 GB, once"
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -c 'import torch, torchvision; print("   torch", torch.__version__, "and torchvision", torchvision.__version__, "are ready")'
	@touch $@

$(VENV)/test-ready: $(VENV)/run-ready requirements-dev.txt
	@echo "== set-up: pytest and ruff"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)_results
