"""Opening, editing and sealing exported programs."""
