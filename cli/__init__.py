"""The stqp command line: thin commands over the stqp library."""
