"""Reads the histories of runs, compares them fairly and draws them. It trains nothing and needs no torch."""
