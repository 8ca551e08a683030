# `make demo` and `make test` do everything on a fresh machine; the rest are their parts.
PY = .venv/bin/python

.PHONY: demo test check setup clean

demo: setup demo/birds demo/digits        ## draw the data, train, test and score both programs: under 10 minutes
	$(PY) bird.py demo/birds/train train demo/bird.pth --budget 3.5
	$(PY) vae.py demo/digits/train.npz demo/digits/val.npz train demo/vae.pth demo/gmm_params.pkl --budget 2
	@echo; echo "== birds =="
	@$(PY) bird.py demo/birds/test test demo/bird.pth --csv demo/bird.csv
	@echo; echo "== digits =="
	@$(PY) vae.py demo/digits/recon.npz test_reconstruction demo/vae.pth --npz demo/vae_reconstructed.npz
	@$(PY) vae.py demo/digits/test.npz test_classifier demo/vae.pth demo/gmm_params.pkl --csv demo/vae.csv
	@echo; echo "all of it lies in demo/:"; ls demo

demo/birds: | setup
	$(PY) -m nestling.cli data birds demo/birds

demo/digits: | setup
	$(PY) -m nestling.cli data digits demo/digits

test: setup check                         ## style, types and all tests
	$(PY) -m pytest -n 2

check: setup
	$(PY) -m ruff check .
	$(PY) -m mypy bird.py vae.py nestling

setup: .venv/installed

.venv/installed: install.sh pyproject.toml constraints.txt
	./install.sh --dev
	@touch $@

clean:                                    ## everything that was made, the environment aside
	rm -rf demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache
