# Everything a person types here. `make` alone lists it.
# The work is done by scripts/; the only thing make itself decides is whether a virtual environment is up to date.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo lab lab-down test lint sanity unit integration molecule bench docs pins clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Two stamps in one environment: the demo must not wait for the linters.
.venv/.demo: requirements/demo.txt scripts/venv.sh
	@scripts/venv.sh .venv $(PYTHON) requirements/demo.txt
	@touch $@

.venv/.test: requirements/test.txt .venv/.demo
	@scripts/venv.sh .venv $(PYTHON) requirements/test.txt
	@touch $@

venv: .venv/.test ## the virtual environment with everything in it

demo: .venv/.demo ## start the lab, break it, diagnose, remediate, verify, roll back
	@$(BIN)/python scripts/demo.py

lab: .venv/.demo ## start the lab
	@$(BIN)/python -m lab up

lab-down: .venv/.demo ## stop the lab
	@$(BIN)/python -m lab down

test: .venv/.test ## all of the following five, and one summary
	@$(BIN)/python scripts/test.py

lint sanity unit integration molecule: .venv/.test
	@$(BIN)/python scripts/test.py $@

# For the list that `make help` prints; the rule is the one above.
lint: ## ruff, mypy, yamllint, shellcheck, ansible-lint, antsibull
sanity: ## ansible-test sanity, on every Python found here
unit: ## pytest tests/unit, on both ends of the supported versions
integration: ## pytest tests/integration
molecule: ## every molecule scenario

bench: .venv/.test ## what a diagnosis costs beside a ping, a backup beside SQLite's shell, an archive beside zstd, a block beside nft
	@$(BIN)/python tests/bench/diagnose.py
	@$(BIN)/python tests/bench/sqlite.py
	@$(BIN)/python tests/bench/dead_letters.py
	@$(BIN)/python tests/bench/ip_block.py

docs: .venv/.test ## regenerate docs/reference from the plugins' documentation
	@scripts/docs.sh

pins: ## resolve requirements/*.in to the newest versions
	@scripts/pins.sh

clean: ## stop the lab and remove everything that these targets made, reports and records excepted
	@test ! -d .lab || $(BIN)/python -m lab down
	rm -rf .lab .venv .venv-* .test .ansible .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
