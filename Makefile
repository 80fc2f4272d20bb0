# `make` alone lists the targets. Everything happens in .venv and build/; nothing is installed twice.
#
# On Linux a plain pip brings the CUDA build of torch; to take the much smaller CPU build, name an
# index that has it: make test PIP_FLAGS="--extra-index-url ..."
# ARGS goes to the program: make demo ARGS=--quick

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
TEST_WORKERS ?= 2
# With seconds for a test. Its process ends then: threads that wait for a lock heed no signal.
TIMEOUT := --timeout-method=thread --timeout
BIN := .venv/bin
BUILD = build/cmake-$(shell $(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)')
CONFIGURE = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python --log-level=WARNING
CPP_FILES := git ls-files '*.cpp' '*.h' '*.cu'

# $(call apt_get,package): installs a Debian package, without ever asking for a password.
apt_get = { sudo=$$([ $$(id -u) = 0 ] || echo sudo -n); command -v apt-get && \
	{ $$sudo apt-get install -qy $(1) || { $$sudo apt-get update -q && $$sudo apt-get install -qy $(1); }; }; } \
	>/dev/null 2>&1

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

.PHONY: env
env: .venv/requirements.stamp  ## create .venv with the pinned requirements-dev.txt

.venv/requirements.stamp: requirements-dev.txt
	@$(PYTHON) -m venv .venv || { $(call apt_get,python3-venv) && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@

.PHONY: build
build: env  ## compile the extension into python/sift_attention
	@test -e "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
		$(call apt_get,python3-dev) || echo "Python.h must be installed (python3-dev), got none."
	@$(BIN)/python setup.py -q build_ext --inplace
	@[ .venv/package.stamp -nt pyproject.toml ] || { \
		$(BIN)/python -m pip install -q --no-build-isolation --no-deps --editable . && touch .venv/package.stamp; }

.PHONY: test
test: env  ## run every test, C++ and Python, and print one summary
	@rm -f build/ctest.xml build/pytest.xml; status=0; \
	$(MAKE) --no-print-directory test-cpp || status=1; \
	$(MAKE) --no-print-directory test-py || status=1; \
	$(BIN)/python tests/summary.py build/ctest.xml build/pytest.xml; exit $$status

.PHONY: test-cpp
test-cpp: build  ## run the C++ tests (Catch2; from Debian where there is none)
	@has_tests() { $(BIN)/cmake $(BUILD) -DSIFT_BUILD_TESTS=ON --log-level=$$1 >/dev/null && \
		$(BIN)/cmake --build $(BUILD) --target help | grep -q test_core; }; \
	has_tests ERROR || { $(call apt_get,catch2 libsimde-dev); has_tests WARNING; } || exit 0; \
	$(BIN)/cmake --build $(BUILD) --parallel; \
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --output-junit $(CURDIR)/build/ctest.xml

.PHONY: test-py
test-py: build  ## run the Python tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TIMEOUT)=600 -n $(TEST_WORKERS) --junitxml=build/pytest.xml

.PHONY: endurance
endurance: build  ## 10,000 requests, 8 threads, forks, interrupts, 100,000 steps: some 15 minutes
	@SIFT_ENDURANCE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s $(TIMEOUT)=1800 tests/endurance $(ARGS)

# What computes in torch alone, loads or builds the library itself, or takes long under a sanitizer.
WITHOUT_KERNELS := eval endurance hf $(addprefix test_,$(addsuffix .py,benchmarks compat cpp_attention \
	docstrings example_cpp gpu_benchmarks gpu_tool loading package quality security symbols tasks))

# GCC's, because its runtime is a library that Python can be made to load first. Without libstdc++
# beside it the first C++ exception would end the program.
.PHONY: asan
asan: env  ## run the CPU tests under AddressSanitizer and UndefinedBehaviorSanitizer, in build/asan
	@$(CONFIGURE) -B build/asan/cmake -DCMAKE_CXX_COMPILER=g++ -DSIFT_SANITIZE=ON \
		-DSIFT_WITH_CUDA=OFF -DSIFT_BUILD_TESTS=ON >/dev/null
	@export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1; \
	rm -rf build/asan/site; \
	$(BIN)/cmake --build build/asan/cmake; \
	$(BIN)/cmake --install build/asan/cmake --prefix build/asan/site/sift_attention; \
	$(BIN)/python setup.py -q build_py --build-lib build/asan/site; \
	$(BIN)/ctest --test-dir build/asan/cmake --output-on-failure; \
	PYTHONPATH=$(CURDIR)/build/asan/site \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) $(or $(ARGS),tests $(WITHOUT_KERNELS:%=--ignore=tests/%))

.PHONY: fuzz
fuzz: build  ## try every property on 5,000 random inputs, about an hour; ARGS goes to pytest
	@HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/properties $(ARGS)

FUZZ_CXX ?= clang++-14
SECONDS ?= 600

.PHONY: fuzz-native
fuzz-native: env  ## random inputs for the CPU kernels and the estimator, each for SECONDS=600
	@command -v $(FUZZ_CXX) >/dev/null || $(call apt_get,clang-14 libclang-rt-14-dev)
	@$(CONFIGURE) -B build/fuzz -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) -DSIFT_BUILD_FUZZERS=ON \
		-DSIFT_WITH_TORCH=OFF >/dev/null
	@$(BIN)/cmake --build build/fuzz
	@for target in power_law decode score_quantile; do \
		mkdir -p build/fuzz/corpus/$$target; \
		build/fuzz/fuzz_$$target -max_total_time=$(SECONDS) -max_len=256 -len_control=0 $(ARGS) \
			-artifact_prefix=build/fuzz/$$target- build/fuzz/corpus/$$target; \
	done

# Without what takes hours under it: the emulated levels, and guard pages, whose work it does itself.
.PHONY: valgrind
valgrind: env  ## run the C++ tests of the portable and AVX2 kernels under valgrind
	@command -v valgrind >/dev/null || $(call apt_get,valgrind)
	@$(CONFIGURE) -B build/valgrind -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSIFT_BUILD_TESTS=ON \
		-DSIFT_WITH_TORCH=OFF -DSIFT_SIMDE_DIR=OFF >/dev/null
	@$(BIN)/cmake --build build/valgrind --target test_core
	@valgrind --quiet --error-exitcode=9 --leak-check=full build/valgrind/test_core $(or $(ARGS),'~*stays within*')

.PHONY: compat
compat: env  ## test the wheel under every supported torch, transformers and Python, about an hour; ARGS=--list
	@$(BIN)/python tools/compat.py $(ARGS)

.PHONY: lint
lint: env  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CPP_FILES) | xargs $(BIN)/clang-format --dry-run -Werror

.PHONY: format
format: env  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CPP_FILES) | xargs $(BIN)/clang-format -i

.PHONY: demo
demo: build  ## watch a model generate with exact and with sifted attention
	@$(BIN)/python examples/demo.py $(ARGS)

.PHONY: notebook
notebook: build  ## execute examples/quality.ipynb and keep its outputs
	@$(BIN)/python tools/quality_notebook.py

.PHONY: example-cpp
example-cpp: build  ## build a C++ program on LibTorch, which continues a text
	@$(BIN)/python examples/cpp/build.py build/example-cpp
	@build/example-cpp/sift_generate $(or $(ARGS),setup.py)

.PHONY: bench
bench: build  ## measure for about 3 minutes, results into build/
	@$(BIN)/python benchmarks/bench_decode.py $(ARGS)

.PHONY: bench-full
bench-full: build  ## measure everything, into benchmarks/results and README's tables
	@$(BIN)/python benchmarks/bench_decode.py --full $(ARGS)
	@$(BIN)/python benchmarks/readme_table.py

.PHONY: bench-generate
bench-generate: build  ## time generate() of a Llama-3.2-1B shape up to 32k keys, about 3 minutes
	@$(BIN)/python benchmarks/bench_generate.py $(ARGS)

.PHONY: profile
profile: build  ## where the time of one decode call goes, into docs/cpu_kernel.md
	@$(BIN)/cmake $(BUILD) -DSIFT_BUILD_BENCHMARKS=ON --log-level=ERROR >/dev/null
	@$(BIN)/cmake --build $(BUILD) --target profile_decode >/dev/null
	@$(BIN)/python benchmarks/profile_decode.py $(BUILD)/profile_decode

.PHONY: gpu
gpu:  ## on a machine with a GPU: build, test and measure in 10 minutes, with $(PYTHON) as it is
	@$(PYTHON) tools/gpu.py $(ARGS)

.PHONY: clean
clean:  ## remove what was built, but not .venv
	@rm -rf build dist demo_output python/*.egg-info python/sift_attention/{lib,include,share}
	@rm -f python/sift_attention/_estimator*.so .venv/package.stamp
