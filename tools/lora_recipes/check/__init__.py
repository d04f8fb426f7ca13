"""What is wrong with a run file, found on a CPU, without weights; changes with the mistakes that are known."""
