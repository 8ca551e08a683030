"""The tools around bird.py and vae.py: data, explanations, runs, reports, submissions."""
