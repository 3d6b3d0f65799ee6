# Everything here works from a fresh clone on Debian, as root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := runc busybox-static docker-registry skopeo umoci containerd socat netcat-openbsd

.PHONY: env system demo test unit lint lock clean

env: $(VENV)/.ready

# The environment is renewed when the locked requirements change, never otherwise.
$(VENV)/.ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	touch $@

# Debian packages are installed only when one is missing.
system:
	@missing=; for p in $(PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; apt-get update -qq || true; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

demo: env system
	$(BIN)/python demo/demo.py

test: env system
	$(BIN)/python -m pytest

unit: env
	$(BIN)/python -m pytest tests/unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

LOCK := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	--no-header --no-annotate --upgrade

lock: env
	$(LOCK) --output-file requirements.txt pyproject.toml
	$(LOCK) --extra dev --all-build-deps --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
