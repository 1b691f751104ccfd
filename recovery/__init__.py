"""Recovery, rehearsed: what is to be done after a loss, and the drills that prove and measure it."""
