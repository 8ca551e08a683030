"""Where images come from: drawn birds, shipped digits, Kaggle, MNIST; and a health check of a folder."""
