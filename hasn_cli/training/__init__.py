"""Training from a folder of pictures."""
