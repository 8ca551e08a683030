"""What a model looks at, and what its figures show: arrays first, drawing in one place.

    gradcam.py    BirdNet, photos -> heat maps            latent.py    VAE, mixture, digits -> latents, grid, ellipses
    pointing.py   heat maps, masks -> does the heat hit?  counts.py    labels -> confusion matrix, scores of a class
    photos.py     BirdNet, folder -> which photos to show
    draw.py       arrays, path -> SVG or PNG, one style   write.py     models, data -> a folder of figures and numbers
"""
