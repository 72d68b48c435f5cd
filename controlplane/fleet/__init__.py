"""The workers, as Redis knows them."""
