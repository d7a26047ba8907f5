# Two commands do everything: `make demo` and `make test`. Each sets up .venv first; the second time that is quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test generator claims gpu lint clean

# Small settings, so that it ends within minutes on a CPU; the scripts' own defaults are the paper's.
CPU := --use_gpu false
CROPS := --data_path $(DEMO)/data/train/rain --gt_path $(DEMO)/data/train/norain --patchSize 32 --batchSize 8
TRAIN := $(CROPS) --manualSeed 1 --workers 1 --overwrite $(CPU)
TEST := --data_path $(DEMO)/data/test/rain --gt_path $(DEMO)/data/test/norain $(CPU)
ED := --netED $(DEMO)/models/ED_state_3.pt
demo: $(VENV)/run-ready
	@echo "== 1/7 free data: photos of scikit-image with procedural rain (no download)"
	$(BIN)/python -m common.data.demo --out $(DEMO)/data
	@echo "== 2/7 joint training in small: fewer stages, small crops, narrow networks, higher rates than the paper's"
	$(BIN)/python for_syn/train_syn_joint.py $(TRAIN) --stage 2 --nz 32 --nef 16 --ndf 32 --niter 3 --iters_per_epoch 200 \
	  --milestone 2 --n_dis 3 --lrDerain 2e-3 --lrED 5e-4 --lrD 5e-4 --model_dir $(DEMO)/models --log_dir $(DEMO)/logs
	$(BIN)/python for_syn/test_syn_joint.py $(TEST) --stage 2 --netDerain $(DEMO)/models/DerainNet_state_3.pt \
	  --save_path $(DEMO)/joint
	@echo "== 3/7 augmented training (A+): a derainer of its own, with rain from the generator just trained"
	$(BIN)/python for_syn/train_syn_aug.py $(TRAIN) $(ED) --recurrent_iter 2 --niter 2 \
	  --iters_per_epoch 120 --milestone 1 --lr 2e-3 --model_dir $(DEMO)/aug_models --log_dir $(DEMO)/aug_logs
	$(BIN)/python for_syn/test_syn_aug.py $(TEST) --model_dir $(DEMO)/aug_models --save_path $(DEMO)/augmented
	@echo "== 4/7 rainy, derained by BNet of joint training, and by the derainer of augmented training"
	$(BIN)/python -m common.evaluation.metrics --pred $(DEMO)/data/test/rain $(DEMO)/joint $(DEMO)/augmented \
	  --gt $(DEMO)/data/test/norain --csv $(DEMO)/metrics.csv
	$(BIN)/python -m common.evaluation.report --rainy $(DEMO)/data/test/rain --derained $(DEMO)/joint $(DEMO)/augmented \
	  --clean $(DEMO)/data/test/norain $(ED) --out $(DEMO)/comparison.png
	@echo "== 5/7 what the generator learned: from one rain to another, and dimension by dimension"
	$(BIN)/python for_syn/test_interpolation.py $(TEST) $(ED) --manualSeed 1 --save_patch $(DEMO)/latent/patch \
	  --save_inputfake $(DEMO)/latent/input_fake --save_rainfake $(DEMO)/latent/rain_fake
	rm -f $(DEMO)/latent/seed10/*.gif
	$(BIN)/python for_syn/test_disentanglement.py $(ED) --manualSeed 10 --gif --save_fake $(DEMO)/latent $(CPU)
	@echo "== 6/7 its rain on two photos that it never saw; and that of the generator that comes with the project"
	$(BIN)/python for_syn/generate_rain.py --data_path $(DEMO)/data/test/norain $(ED) --save_path $(DEMO)/generated \
	  --overwrite $(CPU)
	$(BIN)/python for_syn/generate_rain.py --data_path $(DEMO)/data/test/norain --save_path $(DEMO)/default_generated \
	  --num 2 --overwrite $(CPU)
	$(BIN)/python for_syn/generate_rain.py --data_path $(DEMO)/data/test/norain --save_path $(DEMO)/default_angle \
	  --angle 15 --overwrite $(CPU)
	@echo "== 7/7 all pictures on one page"
	$(BIN)/python -m common.evaluation.gallery --out $(DEMO)_results --title "VRGNet: a run of five minutes" \
	  --show $(DEMO)/comparison.png "Removing rain: rainy, derained by BNet of joint training, derained by a derainer of \
	  augmented training, clean. Below: rain of the generator, which has hardly begun to learn after 600 steps." \
	  $(DEMO)/latent/rain_fake/interpolation.png "From the rain of one photo (w = 0) to that of another (w = 1): the \
	  rain, brightened, and both photos with it." \
	  $(DEMO)/latent/seed10/sheet.png "Each row sweeps one dimension of a rain code from -3 to 3; the numbers are the \
	  dimension and how much it changes the rain, in grey levels a step." \
	  $$(ls $(DEMO)/latent/seed10/dim*.gif | head -n 1) "One of the three dimensions that change the rain most." \
	  $(DEMO)/generated/contact_sheet.jpg "Rain of this generator on photos that it never saw: exact pairs for training." \
	  $(DEMO)/default_generated/contact_sheet.jpg "Rain of the generator that comes with the project (--netED default), \
	  two for each photo." \
	  $(DEMO)/default_angle/contact_sheet.jpg "The same generator with one of its knobs: --angle 15." \
	  --table $(DEMO)/metrics.csv

test: $(VENV)/test-ready
	@echo "== the tests: under five minutes on two cores"
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

# The generator that comes with the project, made again, into $(MADE): hours on two cores. STREAKS: pictures of rain on
# black. After an interruption the same command goes on.
CLEAN ?= photos
STREAKS ?= streaks
MADE := made_generator
EPOCHS := 60
generator: $(VENV)/run-ready
	test -e $(MADE)/train.h5 || $(BIN)/python -m common.data.compose --clean $(CLEAN) --streaks $(STREAKS) --seed 1 \
	  --hold_out 20 --num 400 --out $(MADE)/train.h5
	$(BIN)/python for_syn/train_syn_generator.py --model_dir $(MADE)/models --log_dir $(MADE)/logs \
	  $$(test -e $(MADE)/models/train_state_last.pt && echo --resume -1 || \
	  echo --data_path $(MADE)/train.h5 --niter $(EPOCHS) --manualSeed 1)
	$(BIN)/python -m common.generation.export --netED $(MADE)/models/ED_ema_state_$(EPOCHS).pt --out $(MADE)/ED.pt --overwrite
	$(BIN)/python -m common.evaluation.distance --real $(STREAKS) --hold_out 20 --netED $(MADE)/ED.pt --csv $(MADE)/distance.csv
	$(BIN)/python -m common.generation.controls --netED $(MADE)/ED.pt
	$(BIN)/python for_syn/test_disentanglement.py --netED $(MADE)/ED.pt --figure generated --save_fake $(MADE)
	$(BIN)/python -m common.data.demo --out $(MADE)/photos
	$(BIN)/python for_syn/generate_rain.py --netED $(MADE)/ED.pt --data_path $(MADE)/photos/test/norain --num 2 \
	  --save_path $(MADE)/generated --overwrite

# The paper's claim in small: with and without generated pairs. DATA: see python -m common.evaluation.claims --help.
DATA ?= data
claims: $(VENV)/run-ready
	$(BIN)/python -m common.evaluation.claims --data $(DATA) --out $(DEMO)_claims

# On a machine with a CUDA GPU: what only it can show, and how fast it is (the figures also go to $(DEMO)_gpu/).
gpu: $(VENV)/test-ready
	$(BIN)/python -m pytest -q tests/test_gpu.py
	for batch in 18 36 72; do \
	  $(BIN)/python -m common.benchmark joint --device cuda --precision fp32 tf32 bf16 --batchSize $$batch \
	    --json $(DEMO)_gpu/joint_$$batch.json || exit 1; \
	done
	$(BIN)/python -m common.benchmark joint --device cuda --precision tf32 bf16 --compile --json $(DEMO)_gpu/compiled.json
	for work in aug derain loader; do \
	  $(BIN)/python -m common.benchmark $$work --device cuda --precision fp32 tf32 bf16 \
	    --json $(DEMO)_gpu/$$work.json || exit 1; \
	done

lint: $(VENV)/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/run-ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 ..."; exit 2; }
	@echo "== set-up: a virtual environment in $(VENV) with PyTorch; two to three minutes and 5 GB, once"
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -c 'import torch, torchvision; print("   torch", torch.__version__, "and torchvision", torchvision.__version__, "are ready")'
	@touch $@

$(VENV)/test-ready: $(VENV)/run-ready requirements-dev.txt
	@echo "== set-up: pytest, ruff, mypy"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)_results $(DEMO)_gpu
