"""A payment at somebody else's: charged once, whoever dies, and whatever answer gets lost."""
