# Everything a person types here. `make` alone lists it.
# The work is done by scripts/; the only thing make itself decides is whether a virtual environment is up to date.

PYTHON ?= python3
BIN := .venv/bin
# Whose lab.
SERVICE ?= vritti

.DEFAULT_GOAL := help
.PHONY: help venv demo lab lab-down test lint sanity unit integration molecule bench docs pins clean
.PHONY: incident-status incident-active incident-detect incident-auto-detect incident-emergency-ref

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 30

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

lab: .venv/.demo ## start the lab, of another service with SERVICE=wp_chat
	@$(BIN)/python -m lab up --service $(SERVICE)

lab-down: .venv/.demo ## stop the lab
	@$(BIN)/python -m lab down --service $(SERVICE)

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

# The incident commands of wp_chat's runbook. INVENTORY= and LIMIT= say where, ARGS= whatever else ansible-playbook is to be given (ARGS=-b).
INCIDENT = $(BIN)/ansible-playbook $(if $(INVENTORY),-i "$(INVENTORY)") $(if $(LIMIT),-l "$(LIMIT)") $(ARGS) playbooks/wp_chat_incident

incident-status incident-active: .venv/.demo
	@$(INCIDENT)_$(subst incident-,,$@).yml

incident-auto-detect incident-emergency-ref: .venv/.demo
	@$(INCIDENT)_$(subst -,_,$(subst incident-,,$@)).yml

# Through the environment and as JSON, so that no quote or brace in the words is anything else.
incident-detect: .venv/.demo ## record one: INCIDENT_TYPE= SEVERITY= DESCRIPTION=
	@test -n "$$INCIDENT_TYPE" -a -n "$$SEVERITY" -a -n "$$DESCRIPTION" || \
	{ echo 'Needed: INCIDENT_TYPE=high_latency (or high_error_rate, model_failure, index_corruption, memory_exhaustion, cache_failure,' \
	'rate_limit_attack, canary_failure, unknown) SEVERITY=high (or critical, medium, low) DESCRIPTION="what happened"' >&2; exit 2; }
	@$(INCIDENT)_detect.yml -e "$$($(BIN)/python -c 'import json, os; print(json.dumps({"incident_" + name.rpartition("_")[2].lower(): \
	os.environ[name] for name in ("INCIDENT_TYPE", "SEVERITY", "DESCRIPTION")}))')"

# For the list that `make help` prints; the rules are the ones above.
incident-status: ## incidents of wp_chat: active, of the last 24 h, and where the service disagrees
incident-active: ## those that are active
incident-auto-detect: ## look at everything, and record what is wrong
incident-emergency-ref: ## what to do about which incident; needs no server

docs: .venv/.test ## regenerate docs/reference from the plugins' documentation
	@scripts/docs.sh

pins: ## resolve requirements/*.in to the newest versions
	@scripts/pins.sh

clean: ## stop the lab and remove everything that these targets made, reports and records excepted
	@test ! -d .lab/wp_chat || $(BIN)/python -m lab down --service wp_chat
	@test ! -d .lab || $(BIN)/python -m lab down
	rm -rf .lab .venv .venv-* .test .ansible .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
