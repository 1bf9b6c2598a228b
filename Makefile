# fastbit: `make prepare` before a commit, `make test` to run everything, `make check` in CI
.DEFAULT_GOAL := help
PYTHON ?= python
# in order, so that tests share the fixtures of their module; who is done first takes half of what the other has left
PYTEST = $(PYTHON) -m pytest -q -n 2 --dist worksteal
NBS := nbs
# torch 2.14 deprecates torch.jit.script, which torchvision and fastai still use at import: no such lines in kept outputs
export PYTHONWARNINGS := ignore:`torch.jit:FutureWarning

.PHONY: help config prepare check test test-slow docs coverage fuzz bench

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

config: ## settings.ini -> pyproject.toml and the version
	@$(PYTHON) tools/config.py >/dev/null

prepare: config ## regenerate everything that is generated: config, modules, clean notebooks, picture of the rooms, README
	@nbdev-export
	@nbdev-clean
	@$(PYTHON) tools/rooms.py
	@$(PYTHON) tools/readme.py

check: prepare ## fail if `make prepare` leaves a difference
	@test -z "$$(git status --porcelain)" || { git status --short; git --no-pager diff --stat; \
	  echo "make prepare changed the files above: run it, look, and commit the result."; exit 1; }
	@echo "make check: nothing to regenerate."

test: ## all notebooks, then tests/, both in two processes
	@# an empty cache, and an empty IPython folder: a user's profile and its start-up files are not part of the tests
	@# a thread for each of two processes: OpenMP's threads wait by spinning, and with two each on two cores some notebooks take ten times as long
	@# their temporary files, several hundred MB, are in one folder, which is removed
	files=$$(mktemp -d) && mkdir $$files/cache $$files/ipython && OMP_NUM_THREADS=1 TMPDIR=$$files FASTBIT_CACHE=$$files/cache IPYTHONDIR=$$files/ipython \
	  $(PYTHON) tools/notebooks.py --timing; status=$$?; rm -rf $$files; exit $$status
	$(PYTEST) -m 'not slow' tests

test-slow: ## what takes minutes: runs that are killed, stopped, or several processes
	@# of the files that have some: to import the others takes a quarter of a minute
	$(PYTEST) -m slow $$(grep -l mark.slow tests/test_*.py)

docs: ## the documentation site, in _docs; a warning or a broken link is an error (`quarto render _proc` makes one of the same pages where Quarto is installed)
	$(PYTHON) tools/docs.py

coverage: ## which lines of fastbit notebooks and tests run: a table, and the lines that none of them does
	$(PYTHON) tools/coverage.py --results benchmarks/coverage.json

fuzz: ## a minute of noise into what opens images, tables and artifacts (atheris)
	$(PYTHON) tools/fuzz.py --seconds 60

bench: ## the figures of the documentation's results, on DATA (a folder of class folders), `make bench DATA=FOLDER`
	@test -n "$(DATA)" || { echo "Which data? make bench DATA=FOLDER"; exit 2; }
	$(PYTHON) benchmarks/all.py --data $(DATA)
