"""Questions asked and scored; changes with the metrics and tasks."""
