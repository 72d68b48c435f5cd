"""Who changed what: an append-only record of every write of an operator."""
