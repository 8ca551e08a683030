"""One HTML file in which a visitor's browser runs the trained networks. Nothing imports this but the command.

    export.py     BirdNet, VAE -> layers as plain values, weights as text
    contents.py   models, data, run -> what a page shows of them, as plain values
    build.py      all of these -> the file, or a folder to host
    serve.py      the same page from this machine, with running trainings
    nets.js       both networks' forward passes, in plain JavaScript
    worker.js     the bird network in a worker
    page.html     the skeleton; style.css: the looks
    common.js     what all tabs share, and start.js: the first view
    photos.js, cover.js, birds.js, mistakes.js, plane.js, draw.js, digits.js, training.js: the tabs
"""
