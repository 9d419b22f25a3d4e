"""What patch-level training costs beside ordinary training, measured."""
