"""An order and its workflow in one transaction: both are there, or neither is."""
