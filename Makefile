# make demo and make test set up all they need in .venv first; a second run installs nothing.
# docs/install.md explains the variables PYTHON, TORCH, TORCH_ARGS and VENV_ARGS.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
VENV_ARGS ?=
ROBOT ?= metaworld
ARGS ?=
export PYTHON TORCH TORCH_ARGS VENV_ARGS

BIN := $(CURDIR)/.venv/bin
# Those that need nothing else: online needs bags, the ones beside lerobot an environment of its own; see
# benchmarks/README.md.
BENCHES := bounds control_loop densities engine flows fuzz_bags hot_swap kill_recorder matching player read_bags \
           recorder recorder_sim seams stops straightness training

# The libraries of another environment's ROS wheels don't concern ours.
ifdef _ROS_WHEELS_BOOTSTRAP_COMPLETE
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
endif
ifdef ROS_DISTRO
export LD_LIBRARY_PATH := $(CURDIR)/.venv/lib:$(LD_LIBRARY_PATH)
endif
export AMENT_PREFIX_PATH := $(CURDIR)/.venv$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST

.PHONY: help setup demo test bench lint doctor clean

help:
	@echo 'make demo    watch the robot do what it is told; leaves out/demo (ROBOT=so101: the arm with joints)'
	@echo 'make test    run the tests'
	@echo 'make bench   measure latencies'
	@echo 'make lint    check the style'
	@echo 'make doctor  check this machine'
	@echo 'make clean   remove .venv and what was built; out and runs stay'

setup:
	@sh tools/setup.sh

demo: setup
	$(BIN)/flow-vla demo --contract $(ROBOT) $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

bench: setup
	@for name in $(BENCHES); do echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py $(ARGS) || exit 1; done

lint: setup
	$(BIN)/ruff check .

doctor: setup
	$(BIN)/flow-vla doctor

clean:
	rm -rf .venv build install log *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
