"""The plain trainer; changes with transformers' Trainer and with how it is made fast."""
