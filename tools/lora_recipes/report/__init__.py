"""Tables, plots and pages; changes with what a reader wants to see."""
