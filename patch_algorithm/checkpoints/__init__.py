"""Models on disk: Composer's checkpoints and exported folders, read without a trainer."""
