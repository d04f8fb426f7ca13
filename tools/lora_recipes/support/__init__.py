"""The operating system: files, processes, and what libraries say; changes when that does."""
