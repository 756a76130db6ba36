"""From scores to decisions, and out of the door."""
