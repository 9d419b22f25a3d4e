"""Trained models measured on text: perplexity, bits per byte, differences between two models.

Reads models and data and trains nothing; of the algorithm it knows what a checkpoint says.
"""
