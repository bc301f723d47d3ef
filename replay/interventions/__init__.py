"""Interventions: what a fork does differently from its parent."""
