"""The model bundle: what it is, how it is made, and the one preprocessing."""
