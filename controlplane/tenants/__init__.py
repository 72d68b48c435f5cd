"""Accounts that share the fleet: weights, quotas, retention, and their API keys."""
