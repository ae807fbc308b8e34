# make reproduce   every table and figure: sets up .venv, checks params.yaml, runs what is not up to date
#                  SCALE=photographs (or quick, gpu, paper) first writes that scale into params.yaml's last line
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
# Where the home cannot be written to, uv installs without its cache.
ifneq ($(shell mkdir -p "$$HOME/.cache/uv" 2>&1),)
export UV_NO_CACHE := 1
endif
PYTHON ?= python3
# A CPU's scales have networks too narrow to share among cores, so the first time two dvc run beside each other. Each names its
# stages, in order (-s): two that both looked at what they share would lock each other out. They begin without the dvc.lock of
# another machine: after every stage DVC reads and writes it whole. Of the families, Xu et al.'s (family@x…) take as long as the
# models of Kim et al.; the others are dealt out to both.
both = ( dvc --wait-for-lock repro -s $(1) & dvc --wait-for-lock repro -s $(2); second=$$?; wait $$! && exit $$second )
matching = $$(echo "$$stages" | grep -E '^($(1))')
every_other = $$(echo "$$stages" | grep -E '^($(1))' | awk 'NR % 2 == $(2)')
halves = $(call both,$(call every_other,$(1),0),$(call every_other,$(1),1))
.PHONY: reproduce status test bench lab publish lock lint pages clean

reproduce: .venv/installed
ifdef SCALE
	@sed 's/^run: .*/run: *$(SCALE)/' params.yaml > params.yaml.new && mv params.yaml.new params.yaml
endif
	@python -m robust_features.params
	@scale=$$(sed -n 's/^run: \*//p' params.yaml); if echo quick photographs | grep -qw "$$scale" && [ ! -e "reports/$$scale/index.html" ]; \
	then [ -e data/params ] || rm -f dvc.lock; stages=$$(dvc stage list --names-only); dvc repro params code && $(call halves,dataset) \
	&& $(call both,train attack distil $(call every_other,family@[^x],0),$(call matching,family@x) $(call every_other,family@[^x],1)) \
	&& $(call halves,construct) && $(call halves,descend|transfer) && $(call halves,[1-7][0-9]-|groundwork); fi
	dvc repro

status: .venv/installed
	@python -m robust_features.params data/params
	@dvc status

test: .venv/installed
	ruff check .
	pytest

bench: .venv/installed
	uv pip install --quiet --python .venv/bin/python --requirement requirements.txt --editable ".[bench,dev]"
	python -m benchmarks.run $(BENCH)

lab: .venv/installed
	jupyter lab notebooks

pages: .venv/installed
	dvc repro --force --single-item $$(dvc stage list --names-only | grep '^[1-9]') groundwork-pages index

publish: .venv/installed
	python -m robust_features.report.notebook publish

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

# DVC asks for a git repository. A ZIP of the project is none, and one around it is not ours; where `data` is a link to another
# disk, DVC takes that for outside of it.
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
