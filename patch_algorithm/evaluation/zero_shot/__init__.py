"""Zero-shot tasks: files of them, items from local data, and lm-evaluation-harness, which scores them."""
