"""One module a family of formats, each with `read(source, limit) -> Picture` and `write(picture, stream, options)`."""
