"""What was once found wrong with the converter and the loader, provoked again, one after the other."""
