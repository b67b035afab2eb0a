"""A side-by-side benchmark of the relay and of what people would use instead. See README.md in this folder."""
