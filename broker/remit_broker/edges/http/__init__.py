"""The HTTP edge: health, published keys, and the API that the command line uses."""
