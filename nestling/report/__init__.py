"""From what a run left to a PDF of two or three pages: facts -> sentences and figures -> typst.

    network.py   a network -> its layers, with shapes and counts as they really are
    say.py       measured numbers -> sentences, and nothing that was not measured
    build.py     run, data, ablation, notes -> facts -> PDF
    style.typ, bird.typ, vae.typ             the looks; all text reaches them as data, never as markup
"""
