"""What a model looks at, and what its figures show: arrays first, drawing apart.

    gradcam.py    BirdNet, photos -> class activation maps
    pointing.py   maps, masks -> do they lie on the bird?
    photos.py     BirdNet, folder -> predictions, photos to show
    latent.py     VAE, mixture, digits -> latents, reconstructions, grid
    draw.py       arrays, path -> curves, confusion matrix, ablation
    sheets.py     arrays, path -> maps over photos, digits, latent space
    write.py      models, data -> a folder of figures and numbers
"""
