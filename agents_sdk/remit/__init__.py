"""The SDK of Remit: attach an agent, serve skills, call within a grant."""
