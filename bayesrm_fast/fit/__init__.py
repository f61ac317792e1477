"""From preference pairs to a posterior."""
