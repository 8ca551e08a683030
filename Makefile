# `make demo` and `make test` do everything on a fresh machine; the rest are their parts.
PY = .venv/bin/python

AUTHOR ?= A. Student 2021CS10001          # of `make reports`; make reports AUTHOR="Your Name 2021CS10002"

.PHONY: demo reports web test check check-fast bench setup clean

demo: setup demo/birds demo/digits        ## draw the data, train, test and score both programs: under 10 minutes
	$(PY) bird.py demo/birds/train train demo/bird.pth --budget 3.5
	$(PY) vae.py demo/digits/train.npz demo/digits/val.npz train demo/vae.pth demo/gmm_params.pkl --budget 2
	@echo; echo "== birds =="
	@$(PY) bird.py demo/birds/test test demo/bird.pth --csv demo/bird.csv
	@echo; echo "== digits =="
	@$(PY) vae.py demo/digits/recon.npz test_reconstruction demo/vae.pth --npz demo/vae_reconstructed.npz
	@$(PY) vae.py demo/digits/test.npz test_classifier demo/vae.pth demo/gmm_params.pkl --csv demo/vae.csv
	@echo; echo "all of it lies in demo/:"; ls demo

reports: setup                            ## after `make demo`: two small ablations, then both PDFs: about 9 minutes
	$(PY) -m nestling.cli ablate bird demo/birds/train --out demo/ablation_bird \
		--only no-augmentation,no-batch-norm --seeds 2 --budget 2 --jobs 2
	$(PY) -m nestling.cli ablate vae demo/digits/train.npz demo/digits/val.npz --out demo/ablation_vae \
		--score-on demo/digits/train.npz --only plain,no-warp --seeds 2 --budget 0.75 --jobs 2
	$(PY) -m nestling.cli report bird demo/bird.pth --ablation demo/ablation_bird --dataset demo/birds/test \
		--author "$(strip $(AUTHOR))" --out demo/report_bird.pdf
	$(PY) -m nestling.cli report vae demo/vae.pth --ablation demo/ablation_vae --train demo/digits/train.npz \
		--val demo/digits/val.npz --test demo/digits/test.npz --author "$(strip $(AUTHOR))" --out demo/report_vae.pdf

web: setup                                ## after `make demo`: both networks in a page at http://127.0.0.1:8000/
	$(PY) -m nestling.cli web --bird demo/bird.pth --vae demo/vae.pth --gmm demo/gmm_params.pkl --data demo

demo/birds: | setup
	$(PY) -m nestling.cli data birds demo/birds

demo/digits: | setup
	$(PY) -m nestling.cli data digits demo/digits

test: setup check                         ## style, types and all tests
	$(PY) -m pytest -n 2

check-fast: check                         ## while working: style, types and the tests of seconds, under a minute
	$(PY) -m pytest -n 2 -m "not slow"

check: setup
	$(PY) -m ruff check .
	$(PY) -m mypy bird.py vae.py nestling bench

bench: setup                              ## speed against scikit-learn and the usual loops, into bench/RESULTS.md
	$(PY) -m bench.mixture
	$(PY) -m bench.birds speed

setup: .venv/installed

.venv/installed: install.sh pyproject.toml constraints.txt
	./install.sh --dev
	@touch $@

clean:                                    ## everything that was made, the environment aside
	rm -rf demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache
