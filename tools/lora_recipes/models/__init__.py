"""Base models and adapters, on disk and loaded; changes with transformers and PEFT."""
