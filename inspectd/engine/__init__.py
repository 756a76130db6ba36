"""From crops to scores: slots and batching, and one engine a file."""
