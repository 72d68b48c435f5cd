"""How Django's own pages write instants: to the second, and with their zone."""
