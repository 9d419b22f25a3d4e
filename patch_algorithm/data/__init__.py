"""Data for training: converted once, described, checked, and streamed. It knows nothing of the algorithm."""
