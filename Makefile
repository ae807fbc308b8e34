# make reproduce   every table and figure: sets up .venv, checks params.yaml, runs what is not up to date, a stage a core or GPU
#                  SCALE=photographs (or quick, gpu, paper) chooses that scale first, in params.yaml
#                  PAPER=kim: its sections, with all they need; ONLY=11-kim-3.1: one section, or stage
#                  SLOTS=4: stages at once, on this machine or on each of its GPUs; SCHEDULER=tcp://…: on the workers of a Dask scheduler
# make plan        what a scale would cost on this machine: passes through networks, and hours; SCALE=photographs for another, gpu: counted for an H100
# make status      what would run, and why
# make test        the tests                  make lab    JupyterLab on the notebooks
# make bench       times the library beside other implementations (README: where they come from)
# make campaign    kills make reproduce at 20 random moments, and compares its results with an undisturbed run's
# make publish     copy the report of the scale in params.yaml to reports/published/, which git keeps
# make fetch       SCALE=photographs: networks published for a scale, so that they need no training
# make bundle      SCALE=gpu PAPER=kim: what a machine without network, DVC and git needs to run a paper; TO=folder, HAVE=list of its packages
# make unbundle    FROM=folder: publish what run.py brought back from there
# make lock        regenerate requirements.txt            make clean  remove results (not downloads, not .venv)
# make pages       render all pages anew from the results under data/, which it does not compute again
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONSTARTUP PYTHONWARNINGS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
# A conda environment that is active, and not conda's own, is used and completed; else .venv is set up. The code is this checkout's,
# also where several share an environment.
ENV := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
export PATH := $(abspath $(ENV))/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/lib
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUNBUFFERED := 1
ifneq ($(shell mkdir -p "$$HOME/.cache/uv" 2>&1),)
export UV_NO_CACHE := 1   # the home cannot be written to
endif
PYTHON ?= python3
# Ctrl-C ends make as well: that the command was stopped need not be said twice.
QUIETLY = || [ $$? = 130 ]
.PHONY: reproduce settings plan status test bench campaign lab publish fetch bundle unbundle lock pages clean

reproduce: settings
	@trap : INT; python -m companion engine $(if $(PAPER),--paper $(PAPER)) $(if $(ONLY),--only $(ONLY)) \
	$(if $(SCHEDULER),--scheduler $(SCHEDULER)) $(if $(SLOTS),--slots $(SLOTS)) $(QUIETLY)

# Nothing to resolve where run.yaml is newer than all that it is made of; images outside the project are looked at each time.
settings: $(ENV)/installed
	@trap : INT; [ -z "$(SCALE)" ] && [ run.yaml -nt params.yaml ] && [ -z "$$(find lib scales -name '*.py' -newer run.yaml -o -name '*.yaml' -newer run.yaml)" ] \
	&& ! grep -qs files data/params/outside/*.json || python -m companion params $(SCALE) $(QUIETLY)

plan: $(ENV)/installed
	@trap : INT; python -m companion plan $(SCALE) $(QUIETLY)

status: settings
	@dvc status

test: $(ENV)/installed
	ruff check .
	pytest

bench: $(ENV)/installed
	uv pip install --quiet --python $(ENV)/bin/python --requirement requirements.txt --editable ".[bench,dev]"
	python -m benchmarks.run $(BENCH)

campaign: $(ENV)/installed
	python -m benchmarks.campaign

# Outputs of notebooks stay out of git: .gitattributes names the filter, which each clone has to define.
lab: $(ENV)/installed
	-@git config filter.nbstripout.clean '"$(abspath $(ENV))/bin/python" -m nbstripout --keep-id'
	jupyter lab notebooks

pages: settings
	@trap : INT; python -m companion engine --force kim@ xu@ springer@ ilyas@ theory@ ours@ speed@ groundwork index $(QUIETLY)

publish: $(ENV)/installed
	python -m companion pipeline publish

fetch: $(ENV)/installed
	@python -m companion fetched $(SCALE)

bundle: $(ENV)/installed
	@python -m companion bundle pack $(PAPER) --scale $(SCALE) $(if $(HAVE),--have $(HAVE)) $(if $(TO),--to $(TO))

unbundle: $(ENV)/installed
	@python -m companion bundle take $(FROM)

lock: $(ENV)/uv
	uv pip compile --quiet --universal --python-version 3.11 --extra project --extra dev --no-emit-index-url --no-header pyproject.toml --output-file requirements.txt

clean:
	mkdir -p data reports
	find data/ -mindepth 1 -maxdepth 1 ! -name downloads -exec rm -rf {} +
	find reports/ -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +

$(ENV)/installed: requirements.txt pyproject.toml $(ENV)/uv
	uv pip install --quiet --python $(ENV)/bin/python --requirement requirements.txt --editable .
	touch $@

# DVC asks for a git repository. A ZIP of the project is none; where `data` is a link to another disk, DVC takes it for outside.
ifneq ($(shell [ -e .git ] && [ ! -L data ] || echo none),)
$(ENV)/installed: .dvc/config.local
.dvc/config.local:
	printf '[core]\n    no_scm = true\n' > $@
endif

$(ENV)/uv:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(if $(filter .venv,$(ENV)),$(PYTHON) -m venv .venv)
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	touch $@
