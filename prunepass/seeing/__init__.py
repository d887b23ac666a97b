"""What an engine does with a picture, made visible: which patches stay, which are merged."""
