"""The network evaluated on pictures: fast, in bounded memory, exactly."""
