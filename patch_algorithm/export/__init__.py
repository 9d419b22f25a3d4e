"""Exported Hugging Face folders: whether they are what was trained, and their model cards."""
