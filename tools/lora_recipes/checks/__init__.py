"""The pre-flight of tools/check.py: what is wrong with a run file, found on a CPU, without weights."""
