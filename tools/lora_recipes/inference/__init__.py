"""Answers and log-likelihoods of a loaded model; changes with how they are made fast."""
