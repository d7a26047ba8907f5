# Two commands do everything: `make demo` and `make test`. Each sets up .venv first; the second time that is quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test lint clean

# Small settings, so that it ends within minutes on a CPU; the scripts' own defaults are the paper's.
CPU := --use_gpu false
CROPS := --data_path $(DEMO)/data/train/rain --gt_path $(DEMO)/data/train/norain --patchSize 32 --batchSize 8
TRAIN := $(CROPS) --manualSeed 1 --workers 1 --overwrite $(CPU)
TEST := --data_path $(DEMO)/data/test/rain --gt_path $(DEMO)/data/test/norain $(CPU)
demo: $(VENV)/run-ready
	@echo "== 1/5 free data: photos of scikit-image with procedural rain (no download)"
	$(BIN)/python -m common.data.demo --out $(DEMO)/data
	@echo "== 2/5 joint training in small: fewer stages, small crops, narrow networks, higher rates than the paper's"
	$(BIN)/python for_syn/train_syn_joint.py $(TRAIN) --stage 2 --nz 32 --nef 16 --ndf 32 --niter 3 --iters_per_epoch 200 \
	  --milestone 2 --n_dis 3 --lrDerain 2e-3 --lrED 5e-4 --lrD 5e-4 --model_dir $(DEMO)/models --log_dir $(DEMO)/logs
	$(BIN)/python for_syn/test_syn_joint.py $(TEST) --stage 2 --netDerain $(DEMO)/models/DerainNet_state_3.pt \
	  --save_path $(DEMO)/joint
	@echo "== 3/5 augmented training (A+): a derainer of its own, with rain from the generator just trained"
	$(BIN)/python for_syn/train_syn_aug.py $(TRAIN) --netED $(DEMO)/models/ED_state_3.pt --recurrent_iter 2 --niter 2 \
	  --iters_per_epoch 120 --milestone 1 --lr 2e-3 --model_dir $(DEMO)/aug_models --log_dir $(DEMO)/aug_logs
	$(BIN)/python for_syn/test_syn_aug.py $(TEST) --model_dir $(DEMO)/aug_models --save_path $(DEMO)/augmented
	@echo "== 4/5 rainy, derained by BNet of joint training, and by the derainer of augmented training"
	$(BIN)/python -m common.evaluation.metrics --pred $(DEMO)/data/test/rain $(DEMO)/joint $(DEMO)/augmented \
	  --gt $(DEMO)/data/test/norain --csv $(DEMO)/metrics.csv
	@echo "== 5/5 the same as a picture"
	$(BIN)/python -m common.evaluation.report --rainy $(DEMO)/data/test/rain --derained $(DEMO)/joint $(DEMO)/augmented \
	  --clean $(DEMO)/data/test/norain --netED $(DEMO)/models/ED_state_3.pt --out $(DEMO)/comparison.png

test: $(VENV)/test-ready
	@echo "== the tests: about four minutes on two cores"
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
