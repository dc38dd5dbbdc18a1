"""Videos: what a file is (`clip`), its frames (`frames`), what is written (`encoding`, `tracks`), and the run."""
