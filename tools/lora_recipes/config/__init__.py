"""Axolotl's keys and the files that hold them; changes with Axolotl's schema."""
