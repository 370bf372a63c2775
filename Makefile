# distsage. `make demo` shows it on this machine, `make test` passes the tests; both set up what
# they need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

RUN := .venv/bin/python -m distsage
PYTEST := .venv/bin/python -m pytest
TESTS := tests/unit tests/mpi
# A worker that dies of a signal ends the run; xdist 3.8 can wait for ever for one in its place.
TWO_AT_A_TIME := -n 2 --dist loadfile --max-worker-restart=0

.PHONY: help install mpis demo partition local submit test test-page check format cluster-up \
	cluster-down test-cluster chaos bench bench-quick accuracy docs screenshots

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

install: ## make the Python environment (.venv); uses an existing one that fits
	@tools/install.sh

demo: install ## partition a graph, train on two emulated hosts, evaluate: under 3 minutes
	@.venv/bin/python -m tools.demo $(ARGS)

partition: install ## DATASET=… PARTS=… [OUTPUT=…] [ARGS=…]: split a graph
	@$(RUN) partition --dataset '$(or $(DATASET),$(error say DATASET=… and PARTS=…))' \
	  --num-parts '$(or $(PARTS),$(error say PARTS=…, the number of hosts))' \
	  $(if $(OUTPUT),--output '$(OUTPUT)') $(ARGS)

local: install ## DATASET=… [ARGS=…]: train on this machine alone
	@$(RUN) local --dataset '$(or $(DATASET),$(error say DATASET=…, a name or a path))' \
	  --batch-size 1000 --num-workers 1 $(ARGS)

submit: ## PARTS_DIR=… [RUN_DIR=…] [SBATCH_ARGS=…] [ARGS=…]: submit sbatch/train.sh to Slurm
	@sbatch $(SBATCH_ARGS) sbatch/train.sh \
	  --parts '$(or $(PARTS_DIR),$(error say PARTS_DIR=…, what make partition wrote))' \
	  $(if $(RUN_DIR),--run-dir '$(RUN_DIR)') $(ARGS)

mpis: install ## MPICH and Intel MPI beside the environment, for the tests
	@tools/install_mpis.sh

test: mpis ## unit and MPI tests, those of the kernels at every level that the machine has
	@$(PYTEST) $(TESTS) $(TWO_AT_A_TIME) -o timeout=900 $(ARGS)
	@files=$$(grep -rl --include='*.py' 'mark\.levels' $(TESTS)); \
	for level in $$(.venv/bin/python -m tools.levels); do \
	  echo "at level $$level:"; \
	  DISTSAGE_KERNELS=$$level $(PYTEST) $$files $(TWO_AT_A_TIME) -o timeout=900 \
	    -m 'levels and not own_level' $(ARGS); \
	done

test-cluster: mpis ## tests on a Slurm cluster on this machine (root; installs Debian packages)
	@$(PYTEST) tests/cluster -o timeout=1500 $(ARGS)

test-page: install ## the page about runs in a browser (root; installs Debian packages)
	@tools/install_browser.sh
	@$(PYTEST) tests/page $(ARGS)

screenshots: install ## draw docs/images anew (root; installs Debian packages)
	@tools/install_browser.sh
	@.venv/bin/python -m tools.screenshots

chaos: install ## [ARGS=--rounds N]: faults at random moments of jobs, no run may be lost (root)
	@.venv/bin/python -m tools.chaos $(ARGS)

cluster-up: install ## bring up a Slurm cluster of four hosts on this machine (root)
	@tools/cluster up $(ARGS)

cluster-down: ## take it down again
	@tools/cluster down $(ARGS)

bench: install ## measure against DGL's example, side by side; writes docs/benchmarks.md (root)
	@.venv/bin/python -m tools.bench $(ARGS)

bench-quick: install ## the same, small: prints the ratios, under 8 minutes (root)
	@.venv/bin/python -m tools.bench --quick $(ARGS)

accuracy: install ## train on the real graphs in $$DISTSAGE_DATA; writes docs/accuracy.md
	@.venv/bin/python -m tools.accuracy $(ARGS)

docs: install ## the pages of docs/ as a site: site/index.html
	@.venv/bin/python -m zensical build --strict

check: install ## format, lint, types, import contract, shell
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/shellcheck -x $$(git ls-files '*.sh' .ci/run packaging/image/bin/python)
	@for script in $$(git ls-files '*.sh' .ci/run packaging/image/bin/python); do bash -n "$$script"; done

format: install ## format the code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .
