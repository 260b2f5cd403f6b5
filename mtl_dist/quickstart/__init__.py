"""Creates the folder with the data and the encoder of the quickstart. Does not train and does not import torch."""
