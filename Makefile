# Two commands do everything: `make demo` and `make test`. Each sets up .venv first; the second time that is quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test lint clean

# Small settings, so that it ends within minutes on a CPU; the scripts' own defaults are the paper's.
NET := --stage 2 --use_gpu false
ED := --patchSize 32 --nz 32 --nef 16
demo: $(VENV)/run-ready
	@echo "== 1/4 free data: photos of scikit-image with procedural rain (no download)"
	$(BIN)/python -m common.data.demo --out $(DEMO)/data
	@echo "== 2/4 joint training in small: fewer stages, small crops, narrow networks, higher rates than the paper's"
	$(BIN)/python for_syn/train_syn_joint.py $(NET) --data_path $(DEMO)/data/train/rain --gt_path $(DEMO)/data/train/norain \
	  $(ED) --ndf 32 --batchSize 8 --niter 4 --iters_per_epoch 250 --milestone 3 --n_dis 3 --lrDerain 2e-3 --lrED 5e-4 --lrD 5e-4 \
	  --manualSeed 1 --workers 1 --model_dir $(DEMO)/models --log_dir $(DEMO)/logs --overwrite
	@echo "== 3/4 remove rain from the test photos and measure"
	$(BIN)/python for_syn/test_syn_joint.py $(NET) --netDerain $(DEMO)/models/DerainNet_state_4.pt \
	  --data_path $(DEMO)/data/test/rain --gt_path $(DEMO)/data/test/norain --save_path $(DEMO)/derained
	@echo "== 4/4 the same as a picture"
	$(BIN)/python -m common.evaluation.report --rainy $(DEMO)/data/test/rain --derained $(DEMO)/derained \
	  --clean $(DEMO)/data/test/norain --netED $(DEMO)/models/ED_state_4.pt $(ED) --out $(DEMO)/comparison.png

test: $(VENV)/test-ready
	@echo "== the tests: about three minutes on two cores"
	@$(BIN)/python -m pytest -q

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
	rm -rf $(VENV) $(DEMO)
