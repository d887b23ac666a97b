"""Reading a graph: what its parts are, where tokens run, what it costs."""
