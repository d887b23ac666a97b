"""What an engine's maker will make of a graph, told before the engine is built."""
