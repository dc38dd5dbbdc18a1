"""Decode and encode pictures, whole."""
