"""What was measured, and how sure it is; changes with the shape of result.json."""
