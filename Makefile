# make reproduce   every table and figure: sets up .venv, checks params.yaml, runs what is not up to date
#                  SCALE=photographs (or quick, gpu, paper) chooses that scale first, in params.yaml
# make status      what would run, and why
# make test        the tests                  make lab    JupyterLab on the notebooks
# make bench       times the library beside other implementations (README: where they come from)
# make publish     copy the report of the scale in params.yaml to reports/published/, which git keeps
# make lock        regenerate requirements.txt            make clean  remove results (not downloads, not .venv)
# make pages       render all pages anew from the results under data/, which it does not compute again
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONWARNINGS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUNBUFFERED := 1
ifneq ($(shell mkdir -p "$$HOME/.cache/uv" 2>&1),)
export UV_NO_CACHE := 1   # the home cannot be written to
endif
PYTHON ?= python3
# Networks of a CPU's scales are too narrow to share among cores: the first time, two dvc run beside each other, each with every other
# stage of a kind, first those of groups that read a dataset, at last those on constructed ones. (-s: two that both looked at what they
# share would lock each other out.)
share = dvc --wait-for-lock repro -s $$(echo "$$stages" | awk '/^($(1))/ && !/$(2)/ && n++ % 2 == $(3)')
both = ( $(call share,$(1),$(2),0) & $(call share,$(1),$(2),1); second=$$?; wait $$! && exit $$second )
.PHONY: reproduce settings status test bench lab publish lock lint pages clean

reproduce: settings
	@scale=$$(sed -n 's/^scale: //p' params.yaml); if echo quick photographs | grep -qw "$$scale" && [ ! -e "reports/$$scale/index.html" ]; then \
	stages=$$(dvc stage list --name-only); dvc repro params code && $(call both,dataset@,none) && $(call both,networks@,trained|architectures) \
	&& $(call both,construct@,none) && $(call both,networks@.*(trained|architectures)|transfer@,none) \
	&& $(call both,(kim|xu|springer|ilyas|theory|ours|speed)@|groundwork,none); fi
	dvc repro

settings: .venv/installed
	@python -m companion.params $(SCALE)

status: settings
	@dvc status

test: .venv/installed
	ruff check .
	pytest

bench: .venv/installed
	uv pip install --quiet --python .venv/bin/python --requirement requirements.txt --editable ".[bench,dev]"
	python -m benchmarks.run $(BENCH)

lab: .venv/installed
	jupyter lab notebooks

pages: settings
	dvc repro --force --single-item $$(dvc stage list --name-only | grep -E '^(kim|xu|springer|ilyas|theory|ours|speed)@') groundwork index

publish: .venv/installed
	python -m companion.pipeline publish

lint: .venv/installed
	ruff check --fix .
	ruff format .

lock: .venv/uv
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-emit-index-url --no-header pyproject.toml --output-file requirements.txt

clean:
	mkdir -p data reports
	find data/ -mindepth 1 -maxdepth 1 ! -name downloads -exec rm -rf {} +
	find reports/ -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +

.venv/installed: requirements.txt pyproject.toml .venv/uv
	uv pip install --quiet --python .venv/bin/python --requirement requirements.txt --editable .
	touch $@

# DVC asks for a git repository. A ZIP of the project is none; where `data` is a link to another disk, DVC takes it for outside.
ifneq ($(shell [ -e .git ] && [ ! -L data ] || echo none),)
.venv/installed: .dvc/config.local
.dvc/config.local:
	printf '[core]\n    no_scm = true\n' > $@
endif

.venv/uv:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv
	touch $@
