"""Rows, prompts and masks; changes with what a data set may look like."""
