# `make help` lists what there is. PYTHON is any Python >= 3.11; everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo test test-fast test-slow test-long test-slurm lint toy compare students bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## install the locked packages and ldm into .venv

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("ldm needs Python >= 3.11: make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --require-hashes --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(STAMP) ## digits -> autoencoder -> latents -> flow U-Net -> samples -> metrics -> report.html, into runs/ (4 to 9 minutes)
	$(BIN)/ldm train-autoencoder
	$(BIN)/ldm cache-latents
	$(BIN)/ldm train-diffusion
	$(BIN)/ldm sample sampler.steps=10
	$(BIN)/ldm evaluate classifier=svc
	$(BIN)/ldm report runs/metrics
	@echo
	@echo "pictures: runs/autoencoder/reconstructions/ runs/samples/grid.png runs/samples/trajectory.png runs/*/curves.png"
	@echo "metrics:  runs/metrics/metrics.json"
	@echo "all of it on one page, to be opened in a browser: runs/metrics/report.html"

# up to four processes of one thread each; a file's tests share what its fixtures trained
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -q

test: $(STAMP) ## the tests of every change (limit: 5 minutes on two idle cores)
	$(PARALLEL) -m "not slow and not long and not gpu and not slurm"

test-fast: $(STAMP) ## the mathematics alone (limit: a minute)
	$(PARALLEL) -m "not slow and not long and not gpu" tests/diffusion tests/test_latents.py

test-slow: $(STAMP) ## the tests that take longest, of training and of ranks; their figures are printed at the end
	$(PARALLEL) -m "slow and not slurm" -raP

test-long: $(STAMP) ## what test-slow shows in brief, at length: many kills at random moments; before an issue ends
	$(PARALLEL) -m long -raP

test-slurm: $(STAMP) ## jobs/ on a SLURM cluster of two nodes (skipped where sbatch is not on PATH)
	$(BIN)/python -m pytest -m slurm -q

lint: $(STAMP) ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

toy: $(STAMP) ## straight and curved paths in the plane: docs/toy.png and its table (some minutes)
	$(BIN)/python jobs/toy.py docs/toy.png

compare: $(STAMP) ## quality against network evaluations on digits: docs/compare.png and its table (about 15 minutes)
	$(BIN)/ldm train-autoencoder
	$(BIN)/ldm cache-latents
	for objective in ddpm flow ot_flow; do $(BIN)/ldm train-diffusion run=compare-$$objective objective=$$objective steps=960 || exit 1; done
	$(BIN)/python jobs/compare.py runs docs/compare.png

students: $(STAMP) ## few steps on digits: teacher and students by 1, 2, 4 and 8 evaluations, docs/students.png and its table (about 30 minutes)
	$(BIN)/ldm train-autoencoder
	$(BIN)/ldm cache-latents
	$(BIN)/ldm train-diffusion
	$(BIN)/ldm distill run=students teacher=runs/diffusion guidance=2 "train=['steps=120','every=120','optimizer.lr=5e-4','ema_decay=0.98','schedule.warmup=10']"
	$(BIN)/ldm cache-pairs run=pairs num=8192 guidance=2 sampler.steps=8
	$(BIN)/ldm train-diffusion run=reflow objective=reflow latents=runs/pairs init=runs/diffusion optimizer.lr=1e-3 ema_decay=0.98
	$(BIN)/ldm train-diffusion run=meanflow objective=meanflow init=runs/diffusion objective.student.guidance=2 optimizer.lr=1e-3 ema_decay=0.98
	$(BIN)/ldm train-diffusion run=consistent objective=consistency teacher=runs/diffusion objective.student.guidance=2 objective.student.derivative=0.0127 objective.student.warmup=100 objective.time_sampler.mean=-1 optimizer.lr=5e-4 ema_decay=0.98
	$(BIN)/python jobs/students.py runs docs/students.png

bench: $(STAMP) ## time our networks beside diffusers' in one process
	$(BIN)/python jobs/bench/bench.py

lock: ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --extra dev pyproject.toml -o requirements.lock

clean: ## remove runs/ and caches (not .venv)
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
