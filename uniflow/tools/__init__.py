"""Commands beside training; a function's signature is its command line."""
