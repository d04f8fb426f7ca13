"""An adapter folded into its base, and the proof; changes with the kinds of adapter."""
