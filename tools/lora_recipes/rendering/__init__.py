"""From a recipe and a variant to a run file; changes with the templates."""
