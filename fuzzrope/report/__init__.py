"""Renderers of a campaign's events, one a module. Each takes events one by one and keeps what it needs."""
