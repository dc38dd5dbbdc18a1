"""The command line: one file a command; parses, wires, prints."""
