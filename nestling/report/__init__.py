"""From what a run left to a PDF of two or three pages: numbers -> tables and figures -> typst.

    build.py     run, data, ablation, notes -> the facts of a report, as plain values -> PDF
    network.py   a network -> its layers, with shapes and counts as they really are
    tables.py    measured numbers -> rows of text
    pdf.py       facts -> PDF, by typst: fonts, notes, the limit of three pages
    style.typ, bird.typ, vae.typ             the looks; all text reaches them as data, never as markup
"""
